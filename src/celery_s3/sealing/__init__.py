"""Encryption and integrity at the client: an object is read only if somebody with the keys has written it there.

What is in which module::

    wrapper     Sealing: the wrapper around the store that seals every PUT and opens every GET
    writer      SealingWriter: the same for objects that are written in parts
    format      the bytes and the header of a sealed object
    ciphers     the two ways to seal a segment: AES-256-GCM (in aes) and HMAC-SHA-256
    keyring     the keys of `seal_keys`: in the settings themselves, or in AWS KMS (in kms)

A backend imports nothing of this unless `seal_keys` is set. The threat model stands in ``docs/encryption.md``.
"""
