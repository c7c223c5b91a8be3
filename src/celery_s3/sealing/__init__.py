"""Encryption and integrity at the client: an object is read only if somebody with the keys has written it there.

::

    store (a wrapper like the others) → format (what is in an object) → ciphers → aes
                                      ↘ keyring → kms

A backend imports nothing of this unless `seal_keys` is set. The threat model stands in ``docs/encryption.md``.
"""
