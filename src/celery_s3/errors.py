"""One tree for everything that can go wrong between Celery and S3: when, and what to do next.

::

    CeleryS3Error
    ├── ConfigurationError          settings are wrong → correct each that the message lists
    ├── NotRepaired                 a chord cannot be mended here → let another process do it, which has its tasks
    ├── BodyNotSent                 a chord's body waits for the broker → bring that back: it is tried again
    ├── NoRemoteControl             workers cannot be asked → look where the message says
    ├── UnreadableResult            the object is no result → give this process what the message names, or forget it
    │   └── NoException             a FAILURE was stored with a meta that names no exception → store one that does
    ├── ResultNotStored             a result was not stored → as its cause; nobody will see the state
    ├── ResultNotRead               a result was not fetched → as its cause; the task is not concerned
    ├── MessageNotStored            arguments were not stored → send the task again: nothing was sent
    ├── MessageNotRead              arguments were not fetched → send the task again: this one fails
    ├── FileNotStored               a file was not uploaded → as the message; the task that returns it fails
    ├── FileNotRead                 a file was not fetched, or is another → as the message
    ├── NotEncodable                typed+json cannot hold a value → register the type that the message names
    ├── NotDecodable                no typed+json, or of an unknown type → import the module that registers it
    ├── NotDecompressed             a method of compression is missing here → install the package named
    └── StoreError                  a request to the store failed; the clients raise nothing else
        ├── ObjectMissing           404 NoSuchKey → take it as absent
        ├── UploadMissing           404 NoSuchUpload: completed or aborted → ask whether the object is there
        ├── PreconditionFailed      412: somebody else wrote first → read what is there
        ├── Refused                 the request is wrong for this server → tell whoever can change that
        │   ├── BucketMissing       404 NoSuchBucket → create the bucket, or correct its name
        │   ├── AccessDenied        403 AccessDenied → allow the request
        │   ├── BadCredentials      wrong, expired or missing keys; clock skew → correct them
        │   ├── WrongRegion         301, or 400 with a region in it → set the region
        │   ├── TLSFailure          certificate not trusted, or TLS not spoken → set the CA bundle
        │   ├── BadRequest          any other 4xx → correct the request: most likely a fault of ours
        │   ├── Untrusted           nobody with the keys has written this there → never use it
        │   │   ├── NotSealed       it is plain → forget it, or accept plain objects for a while
        │   │   ├── Tampered        it was changed, exchanged or cut → find out who else writes there
        │   │   ├── Garbled         it is nothing that belongs under its name (also without keys) → as Tampered
        │   │   └── UnknownKey      its key is not among `seal_keys` → add the key
        │   └── KeyRefused          AWS KMS does not give the key → allow it
        └── Transient               → try again
            ├── KeyUnavailable      AWS KMS does not answer for now
            ├── Throttled           503 SlowDown, 429: not carried out → more slowly
            ├── Unreachable         no connection: nothing was sent
            └── Ambiguous           it may have been carried out → read before a conditional write is tried again
                ├── ServerFault     any other 5xx
                ├── Conflict        409: a conflicting operation was in flight
                └── Interrupted     time-out, reset or truncated answer

Some are also what Celery, kombu and Python know by other names: ConfigurationError is an ImproperlyConfigured,
ResultNotStored a BackendStoreError, ResultNotRead and UnreadableResult a BackendGetMetaError, NoException a ValueError,
NotEncodable an EncodeError, NotDecodable and NotDecompressed a DecodeError, FileNotRead an OSError.

The clients translate what their library raises into this tree (``store/clients/*_errors.py``); everything above them
knows only these classes. No message ever holds a secret.
"""

from __future__ import annotations

from typing import ClassVar

from celery.exceptions import BackendGetMetaError, BackendStoreError, ImproperlyConfigured
from kombu.exceptions import DecodeError, EncodeError

from celery_s3.printable import printable

__all__ = [
    "AccessDenied",
    "Ambiguous",
    "BadCredentials",
    "BadRequest",
    "BodyNotSent",
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
    "NoException",
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
    """Base of every error of this package; its text is :mod:`~celery_s3.printable`."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigurationError(CeleryS3Error, ImproperlyConfigured):
    """The settings are wrong; the message lists every mistake and its remedy."""

    def __str__(self) -> str:
        return printable(Exception.__str__(self), keep="\n")  # each in a line of its own


class NotRepaired(CeleryS3Error):
    """A chord cannot be mended from this process; another one may do it."""


class BodyNotSent(CeleryS3Error):
    """The broker is away when the body of a chord is to be sent, which is tried again."""


class NoRemoteControl(CeleryS3Error):
    """The broker cannot reach all workers, as SQS; the message says where to look instead."""


class _OfResult(CeleryS3Error):
    """Its arguments are all positional: Celery's own classes lose what is given by keyword when they are pickled."""

    def __init__(self, message: str, task_id: str = "") -> None:
        Exception.__init__(self, message, task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return printable(str(self.args[0]))


class UnreadableResult(_OfResult, BackendGetMetaError):
    """The object under a result's key is not a result that this process can read."""


class NoException(UnreadableResult, ValueError):
    """A task has stored FAILURE, or another state of failure, with a meta from which no exception can be made."""


class ResultNotRead(_OfResult, BackendGetMetaError):
    """A result could not be fetched; ``__cause__`` is the :class:`StoreError`, if there is one."""


class ResultNotStored(_OfResult, BackendStoreError):
    """A result could not be stored; ``__cause__`` is the :class:`StoreError`.

    Arguments:
        state: the one that was to be stored.
    """

    def __init__(self, message: str, task_id: str = "", state: str = "") -> None:
        super().__init__(message, task_id)
        self.args = message, task_id, state
        self.state = state


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
        bucket: where the object is, empty where the request had none.
        key: of the object, likewise.
        status: the HTTP status, ``None`` where no answer came.
        code: the S3 error code, as ``NoSuchKey``; empty where there was none.

    Attributes:
        what: what went wrong, for all errors of the class.
        remedy: a sentence that tells a user what to do, empty where there is nothing to say.
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
        return f"s3://{self.bucket}/{self.key}" if self.bucket else self.key

    @property
    def reason(self) -> str:
        """What went wrong, without the place and the remedy."""
        answer = " ".join(str(part) for part in (self.status, self.code) if part)
        detail = self.detail.rstrip(".")
        return self._what() + (f" ({answer})" if answer else "") + (f": {detail}" if detail else "")

    def _what(self) -> str:
        return self.what

    def __str__(self) -> str:
        asked = " ".join(filter(None, (self.operation or "request", self._place)))
        text = f"{asked}: {self.reason}"
        return printable(f"{text}. {self.remedy}" if self.remedy else text)


class ObjectMissing(StoreError):
    """There is no object under that key."""

    what = "there is no such object"


class UploadMissing(StoreError):
    """There is no such upload in parts any more; perhaps it is the object by now."""

    what = "the upload in parts was completed or aborted"
    remedy = "Is there a lifecycle rule, or another program, that aborts uploads of less than a day?"


class PreconditionFailed(StoreError):
    """A conditional write, read or delete met another version, or any, or none."""

    what = "the object is not in the version that the write expects"


class Refused(StoreError):
    """The same request would be refused again."""


class BucketMissing(Refused):
    """There is no such bucket, or it is on another server."""

    what = "the bucket does not exist"
    remedy = "Create it, or correct `bucket` (and `endpoint_url`, `aws_region`)."


class AccessDenied(Refused):
    """The credentials are right, and do not allow the request."""

    what = "access denied"
    remedy = (
        "Allow these credentials s3:PutObject, s3:GetObject and s3:DeleteObject on the result keys"
        " and s3:ListBucket on the bucket (without it S3 answers 403 for a result that does not exist yet;"
        " `missing_as_403` accepts that)."
    )


class BadCredentials(Refused):
    """The server does not know the credentials, or there are none to sign with."""

    what = "the credentials are wrong or expired"
    remedy = (
        "Check `aws_access_key_id`, `aws_secret_access_key`, `session_token`, `profile` or the AWS environment,"
        " and the system clock."
    )

    def _what(self) -> str:
        if self.code == "RequestTimeTooSkewed":
            return "the credentials are not taken, since this machine's clock is off"
        # nobody was asked
        return self.what if self.status or self.code else "there are no credentials to sign with"


class WrongRegion(Refused):
    """The bucket is in another region than the request was signed for."""

    what = "the bucket is in another region"
    remedy = "Set `aws_region` (or `s3_region`) to the bucket's region."


class TLSFailure(Refused):
    """No TLS connection could be made."""

    what = "no TLS connection could be made"
    remedy = "Set `verify` to the CA bundle that signed the server's certificate, or correct `endpoint_url`."


class BadRequest(Refused):
    """Any other answer that the same request would get again."""

    what = "the server refused the request"


class Untrusted(Refused):
    """The object is not what somebody with one of the keys has written under its name."""


class NotSealed(Untrusted):
    """The object is plain where only sealed ones are accepted."""

    what = "the object is not sealed, and may be anybody's"
    remedy = "Set `accept_unsealed` while there are objects of before `seal_keys` was set, or forget the result."


class Tampered(Untrusted):
    """The object was changed, exchanged with another or cut after it was sealed."""

    what = "the object is not what was sealed under this name: it was changed, exchanged or cut"
    remedy = "Find out who else may write to the bucket; forget the result, or restore the object."


class Garbled(Untrusted):
    """The object is nothing that is ever written under such a name."""

    what = "the object is not what belongs under this name"
    remedy = "Find out who else writes there, and delete the object."


class UnknownKey(Untrusted):
    """The object is sealed, with a key that is not among `seal_keys`."""

    what = "the object is sealed with a key that this process does not have"
    remedy = "Add that key to `seal_keys`: behind the first one, which seals."


class _OfKMS:
    """Names the KMS key and not the object, which may be any."""

    key: str

    @property
    def _place(self) -> str:
        return f"kms://{self.key}"


class KeyRefused(_OfKMS, Refused):
    """AWS KMS refuses to make or to decrypt a data key; ``key`` is the name of the KMS key."""

    what = "AWS KMS does not give the key"
    remedy = (
        "Allow these credentials kms:GenerateDataKey (to write) and kms:Decrypt (to read) on the key that `seal_keys`"
        " names, and check its name, its region and that it is enabled."
    )


class Transient(StoreError):
    """Worth another try."""


class KeyUnavailable(_OfKMS, Transient):
    """AWS KMS does not answer, or asks to slow down; ``key`` is the name of the KMS key."""

    what = "AWS KMS does not answer"
    remedy = "Check the network, `aws_region` and AWS_ENDPOINT_URL_KMS."


class Throttled(Transient):
    """The server refused the request because there are too many."""

    what = "the server asks to slow down"
    remedy = "S3 grows a prefix's capacity by itself; fewer workers at once or a larger `max_retries` help meanwhile."


class Unreachable(Transient):
    """No connection was made, so nothing was sent."""

    what = "the server cannot be reached"
    remedy = "Check `endpoint_url`, `aws_region` and the network."


class Ambiguous(Transient):
    """The request may have been carried out; a conditional write is settled by reading."""


class ServerFault(Ambiguous):
    """The server failed in the middle of the request."""

    what = "the server failed"
    remedy = "Raise `max_retries` to wait longer for it; its own log may tell why."


class Conflict(Ambiguous):
    """Another request for the same key was being carried out."""

    what = "a conflicting operation was in flight"
    remedy = "Raise `max_retries`; who else writes this key?"


class Interrupted(Ambiguous):
    """The answer did not come, or not whole."""

    what = "the connection broke before the answer was complete"
    remedy = "Raise `read_timeout` if the server is slow."
