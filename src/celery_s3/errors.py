"""One tree for everything that can go wrong between Celery and S3.

::

    CeleryS3Error
    ├── ConfigurationError          also celery's ImproperlyConfigured; carries every mistake
    ├── NotRepaired                 a chord cannot be mended from this process
    ├── NoRemoteControl             the broker cannot reach all workers
    ├── UnreadableResult            also celery's BackendGetMetaError; the object is not a result
    ├── ResultNotStored             also celery's BackendStoreError; raised to Celery by a write
    ├── ResultNotRead               also celery's BackendGetMetaError; raised to Celery by a read
    ├── MessageNotStored            a message's arguments could not be stored (the claim check)
    ├── MessageNotRead              a message's arguments could not be fetched
    ├── FileNotStored               a file could not be uploaded; the task that returns it fails
    ├── FileNotRead                 also an OSError; a file could not be fetched, or is not what was stored
    ├── NotEncodable                also kombu's EncodeError; typed+json cannot hold the value
    ├── NotDecodable                also kombu's DecodeError; no typed+json, or of an unknown type
    ├── NotDecompressed             also kombu's DecodeError; this process lacks the method of compression
    └── StoreError                  what a store client raises, and nothing else
        ├── ObjectMissing           404 NoSuchKey: no object under that key
        ├── UploadMissing           404 NoSuchUpload: it was completed or aborted
        ├── PreconditionFailed      412: somebody else wrote first
        ├── Refused                 the request itself is wrong for this server; never retried
        │   ├── BucketMissing       404 NoSuchBucket
        │   ├── AccessDenied        403 AccessDenied
        │   ├── BadCredentials      wrong, expired or missing keys; clock skew
        │   ├── WrongRegion         301, or 400 with a region in it
        │   ├── TLSFailure          the certificate is not trusted, or TLS was not spoken
        │   ├── BadRequest          any other 4xx
        │   ├── Untrusted           the object is not what somebody with the keys has written there
        │   │   ├── NotSealed       it is plain
        │   │   ├── Tampered        it was changed, exchanged or cut
        │   │   ├── Garbled         it is nothing that belongs under its name; also without `seal_keys`
        │   │   └── UnknownKey      its key is not among `seal_keys`
        │   └── KeyRefused          AWS KMS does not give the key
        └── Transient               worth another try
            ├── KeyUnavailable      AWS KMS does not answer for now
            ├── Throttled           503 SlowDown, 429: refused before it was carried out
            ├── Unreachable         no connection: nothing was sent
            └── Ambiguous           it may have been carried out
                ├── ServerFault     any other 5xx
                ├── Conflict        409: a conflicting operation was in flight
                └── Interrupted     time-out, reset or truncated answer

The clients translate what their library raises into this tree (``store/*_client.py``);
everything above them knows only these classes. No message ever holds a secret.
"""

from __future__ import annotations

from typing import ClassVar

from celery.exceptions import BackendGetMetaError, BackendStoreError, ImproperlyConfigured
from kombu.exceptions import DecodeError, EncodeError

__all__ = [
    "AccessDenied",
    "Ambiguous",
    "BadCredentials",
    "BadRequest",
    "BucketMissing",
    "CeleryS3Error",
    "ConfigurationError",
    "Conflict",
    "FileNotRead",
    "FileNotStored",
    "Garbled",
    "Interrupted",
    "KeyRefused",
    "KeyUnavailable",
    "MessageNotRead",
    "MessageNotStored",
    "NoRemoteControl",
    "NotDecodable",
    "NotDecompressed",
    "NotEncodable",
    "NotRepaired",
    "NotSealed",
    "ObjectMissing",
    "PreconditionFailed",
    "Refused",
    "ResultNotRead",
    "ResultNotStored",
    "ServerFault",
    "StoreError",
    "TLSFailure",
    "Tampered",
    "Throttled",
    "Transient",
    "UnknownKey",
    "Unreachable",
    "UnreadableResult",
    "Untrusted",
    "UploadMissing",
    "WrongRegion",
]


class CeleryS3Error(Exception):
    """Base of every error of this package."""


class ConfigurationError(CeleryS3Error, ImproperlyConfigured):
    """The settings are wrong; the message lists every mistake and its remedy."""


class NotRepaired(CeleryS3Error):
    """A chord cannot be mended from this process; another one may do it."""


class NoRemoteControl(CeleryS3Error):
    """The broker cannot reach all workers, as SQS; the message says where to look instead."""


class UnreadableResult(CeleryS3Error, BackendGetMetaError):
    """The object under a result's key is not a result that this process can read."""

    def __init__(self, message: str, task_id: str = "") -> None:
        Exception.__init__(self, message, task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return str(self.args[0])


class ResultNotRead(CeleryS3Error, BackendGetMetaError):
    """A result could not be fetched; ``__cause__`` is the :class:`StoreError`."""

    def __init__(self, message: str, task_id: str = "") -> None:
        Exception.__init__(self, message, task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return str(self.args[0])


class ResultNotStored(CeleryS3Error, BackendStoreError):
    """A result could not be stored; ``__cause__`` is the :class:`StoreError`."""

    def __init__(self, message: str, task_id: str = "", state: str = "") -> None:
        Exception.__init__(self, message, task_id, state)
        self.task_id = task_id
        self.state = state

    def __str__(self) -> str:
        return str(self.args[0])


class MessageNotStored(CeleryS3Error):
    """The arguments of a message could not be stored; ``__cause__`` is the :class:`StoreError`."""


class MessageNotRead(CeleryS3Error):
    """The arguments of a message could not be fetched, or are not what was stored; the task fails with this."""


class FileNotStored(CeleryS3Error):
    """A file could not be read where it is, or not be uploaded; the message names it and the reason."""


class FileNotRead(CeleryS3Error, OSError):
    """A file could not be fetched from S3, or what was fetched is not what was stored."""


class NotEncodable(CeleryS3Error, EncodeError):
    """A value cannot be written as ``typed+json``; the message names its type."""


class NotDecodable(CeleryS3Error, DecodeError):
    """What was read is no ``typed+json``, or names a type that is not registered in this process."""


class NotDecompressed(CeleryS3Error, DecodeError):
    """What was read is compressed by a method that this process lacks; the message names the package."""


class StoreError(CeleryS3Error):
    """A request to the object store failed.

    Arguments:
        detail: what the server or the library said, free of secrets.
        operation: the verb, as ``put`` or ``get``.
        bucket, key: the object, empty where the request had none.
        status: the HTTP status, ``None`` where no answer came.
        code: the S3 error code, as ``NoSuchKey``; empty where there was none.
    """

    what: ClassVar[str] = "the request failed"
    remedy: ClassVar[str] = ""

    def __init__(
        self,
        detail: str = "",
        operation: str = "",
        bucket: str = "",
        key: str = "",
        status: int | None = None,
        code: str = "",
    ) -> None:
        super().__init__(detail, operation, bucket, key, status, code)
        self.detail = detail
        self.operation = operation
        self.bucket = bucket
        self.key = key
        self.status = status
        self.code = code

    @property
    def _place(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def reason(self) -> str:
        """What went wrong, without the place and the remedy."""
        answer = " ".join(str(part) for part in (self.status, self.code) if part)
        detail = self.detail.rstrip(".")
        return self.what + (f" ({answer})" if answer else "") + (f": {detail}" if detail else "")

    def __str__(self) -> str:
        text = f"{self.operation or 'request'} {self._place}: {self.reason}"
        return f"{text}. {self.remedy}" if self.remedy else text


class ObjectMissing(StoreError):
    what = "there is no such object"


class UploadMissing(StoreError):
    what = "the upload in parts was completed or aborted"
    remedy = "Is there a lifecycle rule, or another program, that aborts uploads of less than a day?"


class PreconditionFailed(StoreError):
    what = "the object is not in the version that the write expects"


class Refused(StoreError):
    """The same request would be refused again."""


class BucketMissing(Refused):
    what = "the bucket does not exist"
    remedy = "Create it, or correct `bucket` (and `endpoint_url`, `aws_region`)."


class AccessDenied(Refused):
    what = "access denied"
    remedy = (
        "Allow these credentials s3:PutObject, s3:GetObject and s3:DeleteObject on the result keys"
        " and s3:ListBucket on the bucket (without it S3 answers 403 for a result that does not exist yet;"
        " `missing_as_403` accepts that)."
    )


class BadCredentials(Refused):
    what = "the credentials are missing, wrong or expired, or this machine's clock is off"
    remedy = (
        "Check `aws_access_key_id`, `aws_secret_access_key`, `session_token`, `profile` or the AWS environment,"
        " and the system clock."
    )


class WrongRegion(Refused):
    what = "the bucket is in another region"
    remedy = "Set `aws_region` (or `s3_region`) to the bucket's region."


class TLSFailure(Refused):
    what = "no TLS connection could be made"
    remedy = "Set `verify` to the CA bundle that signed the server's certificate, or correct `endpoint_url`."


class BadRequest(Refused):
    what = "the server refused the request"


class Untrusted(Refused):
    """The object is not what somebody with one of the keys has written under its name."""


class NotSealed(Untrusted):
    what = "the object is not sealed, and may be anybody's"
    remedy = "Set `accept_unsealed` while there are objects of before `seal_keys` was set, or forget the result."


class Tampered(Untrusted):
    what = "the object is not what was sealed under this name: it was changed, exchanged or cut"
    remedy = "Find out who else may write to the bucket; forget the result, or restore the object."


class Garbled(Untrusted):
    what = "the object is not what belongs under this name"
    remedy = "Find out who else writes there, and delete the object."


class UnknownKey(Untrusted):
    what = "the object is sealed with a key that this process does not have"
    remedy = "Add that key to `seal_keys`: behind the first one, which seals."


class _OfKMS:
    """``key`` is the KMS key; the object is not named."""

    key: str

    @property
    def _place(self) -> str:
        return f"kms://{self.key}"


class KeyRefused(_OfKMS, Refused):
    what = "AWS KMS does not give the key"
    remedy = (
        "Allow these credentials kms:GenerateDataKey (to write) and kms:Decrypt (to read) on the key that `seal_keys`"
        " names, and check its name, its region and that it is enabled."
    )


class Transient(StoreError):
    """Worth another try."""


class KeyUnavailable(_OfKMS, Transient):
    what = "AWS KMS does not answer"
    remedy = "Check the network, `aws_region` and AWS_ENDPOINT_URL_KMS."


class Throttled(Transient):
    what = "the server asks to slow down"
    remedy = "S3 grows a prefix's capacity by itself; fewer workers at once or a larger `max_retries` help meanwhile."


class Unreachable(Transient):
    what = "the server cannot be reached"
    remedy = "Check `endpoint_url`, `aws_region` and the network."


class Ambiguous(Transient):
    """The request may have been carried out; a conditional write is settled by reading."""


class ServerFault(Ambiguous):
    what = "the server failed"
    remedy = "Raise `max_retries` to wait longer for it; its own log may tell why."


class Conflict(Ambiguous):
    what = "a conflicting operation was in flight"
    remedy = "Raise `max_retries`; who else writes this key?"


class Interrupted(Ambiguous):
    what = "the connection broke before the answer was complete"
    remedy = "Raise `read_timeout` if the server is slow."
