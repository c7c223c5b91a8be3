"""The control plane: the bucket itself, its rules, its encryption, and who is asking.

What the commands need and no worker does; always boto3, which is imported at the first request. Each method is one
request unless it says otherwise, and raises :class:`celery_s3.errors.StoreError` and nothing else. The requests go the
way of all others: bounded in time, by their caller's deadline too, and tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from celery_s3.errors import AccessDenied, BadRequest, Conflict, PreconditionFailed, StoreError, UploadMissing
from celery_s3.settings import Settings
from celery_s3.store.bounded import Bounded
from celery_s3.store.requests import Request
from celery_s3.store.retrying import Retrying, RetryPolicy

from .stuck import break_connection
from .timeouts import OF_A_PAGE, by_size
from .translate import Subject

__all__ = ["BLOCK", "Control", "Identity", "Upload"]

_T = TypeVar("_T")
_A = TypeVar("_A")

#: How often a request is tried again: each of them may be repeated.
_RETRIES = 2
#: Bytes a second that an answer has time for.
_RATE = 128 * 1024
#: What S3 answers where nothing was configured; not an error.
_NOTHING = frozenset(
    {
        "NoSuchLifecycleConfiguration",
        "NoSuchPublicAccessBlockConfiguration",
        "ServerSideEncryptionConfigurationNotFoundError",
    }
)
#: Every kind of public access, as S3's API names its refusal.
BLOCK = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the credentials belong to; neither is a secret."""

    account: str
    arn: str


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and neither completed nor aborted; its parts are billed."""

    key: str
    id: str
    started: datetime


#: The one request that is made to STS.
_IDENTITY = "get_caller_identity"
#: No request to S3; but the source of credentials may be a program, or a server, that does not answer.
_CREDENTIALS = "get_credentials"


@dataclass(frozen=True, slots=True)
class _Call(Request[Any]):
    """One request, as botocore calls it."""

    verb, action = "", ""
    # A conflict tells what stands there: another try would tell the same.
    final: ClassVar[tuple[type[StoreError], ...]] = (Conflict,)
    operation: str
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    key: str = ""


class _Client:
    """Makes the requests; botocore's clients, each made at its first one.

    Attributes:
        skew: see :attr:`Control.skew`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.skew: float | None = None

    def send(self, request: Request[_A]) -> _A:
        assert isinstance(request, _Call)
        ask = self._find_credentials if request.operation == _CREDENTIALS else partial(self._ask, request)
        answer: _A = self.translated(request, ask)
        return answer

    def _ask(self, request: _Call) -> Any:
        client = self._sts if request.operation == _IDENTITY else self.s3
        answer = getattr(client, request.operation)(**request.parameters)
        if request.operation == "get_object":
            with closing(answer["Body"]) as body:
                answer["Body"] = body.read()
        return answer

    def _find_credentials(self) -> Any:
        from botocore.exceptions import NoCredentialsError

        from .session import open_session

        found = (self._settings.session or open_session(self._settings)).get_credentials()
        if found is None:
            raise NoCredentialsError
        return {"method": str(found.method)}

    def seconds(self, request: Request[Any]) -> tuple[float, bool]:
        return by_size(self._settings, max(OF_A_PAGE, len(request.body)), _RATE), False

    def cut(self, thread: int) -> None:
        break_connection(thread)

    def close(self) -> None:
        if "s3" in vars(self):
            self.s3.close()

    def translated(self, request: Subject, action: Callable[[], _T]) -> _T:
        """What a call of botocore returns; what it raises, as one of our errors."""
        from .boto3_errors import call

        return call(action, request, self._settings)

    @cached_property
    def s3(self) -> Any:
        from .boto3_client import connect

        # a directory bucket signs as its session does; everywhere else a link is to be signed by version 4
        signature = {} if self._settings.bucket.endswith("--x-s3") else {"signature_version": "s3v4"}
        client = connect(self._settings, **signature)
        client.meta.events.register("after-call.s3", self.note_date)
        return client

    def note_date(self, http_response: Any, **_: Any) -> None:
        """Compare the clocks, by an answer."""
        with suppress(KeyError, TypeError, ValueError):
            date = parsedate_to_datetime(http_response.headers["Date"])
            # The header has whole seconds, cut off: half a second is its error on average.
            self.skew = time.time() - date.timestamp() - 0.5

    @cached_property
    def _sts(self) -> Any:
        from botocore.config import Config

        from .network import proxies_to, sts_url, trusted
        from .session import client_factory

        settings = self._settings
        url = None if settings.on_aws else settings.endpoint_url
        config = Config(
            proxies=proxies_to(url or sts_url(settings), settings),
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        return client_factory(settings)(
            "sts",
            region_name=settings.region,
            endpoint_url=url,
            verify=trusted(settings),
            config=config,
        )


class Control:
    """The control plane of the bucket that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client = _Client(settings)
        self._store = Retrying(Bounded(self._client, settings), policy=RetryPolicy(_RETRIES))

    @property
    def skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the server's, within half a second.

        As the server's last answer told; ``None`` before any.
        """
        return self._client.skew

    # -- who asks

    @property
    def credentials_found(self) -> str:
        """How botocore found the credentials, as ``env``, ``sso`` or ``iam-role``; no request to S3.

        Raises:
            BadCredentials: there are none.
            Interrupted: their source did not answer in time.
        """
        method: str = self._store.send(_Call(_CREDENTIALS))["method"]
        return method

    def identity(self) -> Identity:
        """Whose credentials these are, as STS tells it.

        A server that is not Amazon's is asked itself, never AWS; where it knows nothing of STS, that raises.
        """
        answer = self._store.send(_Call(_IDENTITY))
        return Identity(answer.get("Account", ""), answer.get("Arn", ""))

    # -- the bucket

    def region(self) -> str:
        """The region that the bucket is in, empty where the server does not say.

        A listing of one key: a HEAD would not tell why it is refused, and a policy may allow the base alone.

        Raises:
            BucketMissing: there is no such bucket.
            WrongRegion: it is in another region than the settings say.
            AccessDenied: it is another's, or these credentials lack ``s3:ListBucket``.
        """
        answer = self._call("list_objects_v2", Prefix=self.settings.base, MaxKeys=1, **self._payer)
        return str(answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", ""))

    def create(self) -> None:
        """Create the bucket in the settings' region; one that is one's own already stays as it is."""
        region = self.settings.region
        # CreateBucket refuses us-east-1 as a LocationConstraint: a bucket without one is there.
        place = {"CreateBucketConfiguration": {"LocationConstraint": region}} if region != "us-east-1" else {}
        try:
            self._call("create_bucket", **place)
        except Conflict as exc:
            if exc.code == "BucketAlreadyOwnedByYou":
                return
            if exc.code == "BucketAlreadyExists":
                taken = "another account has a bucket of this name: choose another `bucket`"
                raise BadRequest(taken, exc.operation, exc.bucket, "", exc.status, exc.code) from exc
            raise

    def public_access_blocked(self) -> bool:
        """Whether the bucket refuses every kind of public access."""
        answer = self._configured("get_public_access_block")
        block = answer.get("PublicAccessBlockConfiguration", {})
        # elsewhere the first may have been left out: see block_public_access
        wanted = BLOCK if self.settings.on_aws else BLOCK[1:]
        return all(block.get(name) for name in wanted)

    def block_public_access(self, *, acls: bool = True) -> None:
        """Let the bucket refuse every kind of public access.

        Arguments:
            acls: also writes that come with a public ACL; Ceph takes every write for one.
        """
        block = {name: acls or name != BLOCK[0] for name in BLOCK}
        self._call("put_public_access_block", PublicAccessBlockConfiguration=block)

    def may_write(self, key: str) -> bool:
        """Whether an object can be written there, which is deleted again. Two requests.

        Raises:
            StoreError: it is not known.
        """
        from .boto3_client import storage_parameters

        try:
            self._call("put_object", Key=key, Body=b"", **storage_parameters(self.settings), **self._payer)
        except AccessDenied:
            return False
        self._call("delete_object", Key=key, **self._payer)
        return True

    def encryption(self) -> dict[str, Any]:
        """The bucket's default encryption as S3 tells it, empty where there is none."""
        answer = self._configured("get_bucket_encryption")
        rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        return dict(rules[0]) if rules else {}

    def put_encryption(self, rule: Mapping[str, Any]) -> None:
        """Make a rule, as :meth:`encryption` returns it, the bucket's default."""
        self._call("put_bucket_encryption", ServerSideEncryptionConfiguration={"Rules": [dict(rule)]})

    def versioning(self) -> str:
        """``Enabled``, ``Suspended``, or empty where the bucket was never versioned."""
        return str(self._call("get_bucket_versioning").get("Status", ""))

    # -- the lifecycle

    def lifecycle(self) -> list[dict[str, Any]]:
        """The bucket's lifecycle rules in their order, as S3's API has them."""
        return list(self._configured("get_bucket_lifecycle_configuration").get("Rules", []))

    def put_lifecycle(
        self, rules: Sequence[Mapping[str, Any]], *, replacing: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Make these the bucket's lifecycle rules, all of them; none deletes the configuration. Two requests.

        S3 knows no condition for this write: what stands there is read right before it.

        Arguments:
            replacing: the rules that are to be replaced; ``None``: whichever stand there.

        Raises:
            PreconditionFailed: others stand there than ``replacing``. Nothing is changed.
        """
        standing = self._configured("get_bucket_lifecycle_configuration")
        if replacing is not None and list(replacing) != standing.get("Rules", []):
            changed = "the lifecycle rules were changed meanwhile: look again"
            raise PreconditionFailed(changed, "put_bucket_lifecycle_configuration", self.settings.bucket)
        if not rules:
            self._call("delete_bucket_lifecycle")
            return
        # Without it, S3 would reset what was chosen here to its default.
        size = standing.get("TransitionDefaultMinimumObjectSize")
        self._call(
            "put_bucket_lifecycle_configuration",
            LifecycleConfiguration={"Rules": [dict(rule) for rule in rules]},
            **({"TransitionDefaultMinimumObjectSize": size} if size else {}),
        )

    # -- one object, as no other part of the code needs to see it

    def stored(self, key: str) -> dict[str, Any]:
        """What S3 tells beside an object: ``ServerSideEncryption``, ``SSEKMSKeyId``, ``StorageClass`` and the like.

        A GET, since a HEAD would not tell why it is refused.
        """
        return self._call("get_object", Key=key, **self._payer)

    def read(self, key: str, byte_range: str = "", *, if_match: str = "") -> bytes:
        """An object's bytes as the server answers them, whatever it makes of ``Range`` and ``If-Match``."""
        given = {"Range": byte_range, "IfMatch": if_match}
        parameters = {name: value for name, value in given.items() if value}
        return bytes(self._call("get_object", Key=key, **parameters, **self._payer)["Body"])

    def listed(self, key: str) -> list[datetime]:
        """When the objects were written whose keys begin so, as a listing tells it."""
        answer = self._call("list_objects_v2", Prefix=key, **self._payer)
        return [one["LastModified"] for one in answer.get("Contents", [])]

    def put_with_checksum(self, key: str, body: bytes) -> None:
        """Write an object with the CRC32 that boto3 sends to Amazon by default."""
        from .boto3_client import storage_parameters

        how = storage_parameters(self.settings)
        self._call("put_object", Key=key, Body=body, ChecksumAlgorithm="CRC32", **how, **self._payer)

    # -- uploads in parts

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """The unfinished uploads of keys that begin so; one request for each 1,000."""
        marker: dict[str, Any] = {}
        while True:
            try:
                answer = self._call("list_multipart_uploads", Prefix=prefix, **self._payer, **marker)
            except UploadMissing:
                return  # rclone's word for a bucket that has none
            for one in answer.get("Uploads", []):
                if "Initiated" in one:  # without that, none can be told to be stale
                    yield Upload(one["Key"], one["UploadId"], one["Initiated"])
            if not answer.get("IsTruncated") or "NextKeyMarker" not in answer:
                return
            marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}

    def abort(self, upload: Upload) -> None:
        """Abort an upload; one that was completed or aborted meanwhile is no error."""
        try:
            self._call("abort_multipart_upload", Key=upload.key, UploadId=upload.id, **self._payer)
        except StoreError as exc:
            if exc.code != "NoSuchUpload":
                raise

    # -- links

    def presign(self, key: str, seconds: int, *, filename: str = "", content_type: str = "") -> str:
        """A link by which anybody can GET an object until ``seconds`` from now; no request.

        S3 accepts 7 days (604,800) at most, and the link ends with the credentials that signed it.

        Arguments:
            filename: under which a browser saves it.
            content_type: that is answered in place of the stored one.
        """
        given = {
            "ResponseContentDisposition": f'attachment; filename="{filename}"' if filename else "",
            "ResponseContentType": content_type,
        }
        parameters = {name: value for name, value in given.items() if value}
        parameters |= {"Bucket": self.settings.bucket, "Key": key, **self._payer}

        call = {"ClientMethod": "get_object", "Params": parameters, "ExpiresIn": seconds}
        return str(self._store.send(_Call("generate_presigned_url", call, key)))

    # -- the client

    @property
    def _payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self.settings.request_payer else {}

    def _configured(self, operation: str) -> dict[str, Any]:
        """The answer, empty where S3 says that nothing was configured."""
        try:
            return self._call(operation)
        except StoreError as exc:
            if exc.code in _NOTHING:
                return {}
            raise

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        parameters["Bucket"] = self.settings.bucket
        if self.settings.expected_bucket_owner and operation != "create_bucket":
            parameters["ExpectedBucketOwner"] = self.settings.expected_bucket_owner
        return self._store.send(_Call(operation, parameters))
