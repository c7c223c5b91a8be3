"""What obstore raises, as the classes of :mod:`celery_s3.errors`.

obstore tells status and cause in the text of its exceptions alone: a sentence, then Rust's debug form, which has
one field a line and escapes newlines inside of values, so that neither a key nor a server can forge a line::

    Generic S3 error: Error performing PUT http://… in 1.2ms - Server returned non-2xx status code: 503 …

    Debug source:
    Generic {
        …
                inner: Status {
                    status: 503,
                    body: Some(
                        "<Error><Code>SlowDown</Code>…",
                    ),

Hence the upper bound on obstore's version; ``tests/contract/test_translation.py`` has the whole table.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from obstore import exceptions as obs

from celery_s3.errors import (
    BadCredentials,
    BadRequest,
    Interrupted,
    ObjectMissing,
    PreconditionFailed,
    StoreError,
    TLSFailure,
    Unreachable,
    WrongRegion,
)
from celery_s3.settings import Settings

from .translate import ROUTINE, Answer, Subject, error_of

__all__ = ["Failure", "is_failure"]

#: What a call of obstore may raise, besides the ``PanicException`` that no module exports.
_FAILURES = (obs.BaseError, OSError, NotImplementedError, ValueError)

#: What an exception means where no answer came.
_KINDS: Mapping[str, type[StoreError]] = {
    "AlreadyExistsError": PreconditionFailed,
    "JoinError": Interrupted,
    "NotFoundError": ObjectMissing,
    "PermissionDeniedError": BadCredentials,
    "PreconditionError": PreconditionFailed,
    "UnauthenticatedError": BadCredentials,
    # a path, a parameter or a configuration that obstore does not take; S3's 404 has a status
    "BaseError": BadRequest,
    "FileNotFoundError": BadRequest,
    "GenericError": BadRequest,
    "InvalidPathError": BadRequest,
    "NotImplementedError": BadRequest,
    "NotModifiedError": BadRequest,
    "NotSupportedError": BadRequest,
    "OSError": Interrupted,
    "PanicException": BadRequest,
    "UnknownConfigurationKeyError": BadRequest,
    "ValueError": BadRequest,
}

#: What a line of the debug form means where no answer came; the first that is found decides.
_SIGNS: Mapping[str, type[StoreError]] = {
    r"BareRedirect,": WrongRegion,
    r"kind: Builder,": BadRequest,
    r"error: (?:AlertReceived|InvalidCertificate|InvalidMessage|PeerIncompatible|PeerMisbehaved)": TLSFailure,
    r"kind: Connect,": Unreachable,
    r"(?:source: )?HttpError \{": Interrupted,
    r"(?:source: )?(?:MissingEtag|Metadata)": Interrupted,
    # deleted or not: one by one tells, where the server's answer cannot be read (JuiceFS: `<Deleted>` without Key)
    r"(?:source: )?InvalidDeleteObjectsResponse": BadRequest,
    r"source: Missing(?:AccessKeyId|SecretAccessKey)": BadCredentials,
    r'source: "Failed to read token file': BadCredentials,
}

_MARK = "\n\nDebug source:\n"
# Each pattern spans a line break, which no value contains (they are escaped), so a server cannot forge a match. A
# pattern that begins with literal text is searched for fast.
_ANSWER = re.compile(r'inner: (?:Status|Response) \{\n +status: (\d{3}),\n +body: (?:Some\(\n +)?(?:None|"(.*)"),\n')
_URI = re.compile(r"uri: (?:None|Some\(\n +(\S+)),\n")
_ELAPSED = re.compile(r"elapsed: ([\d.]+)(ns|µs|ms|s),\n")
_DELETE_FAILED = re.compile(r'DeleteFailed \{\n.*\n +code: "(.*)",\n +message: "(.*)",\n')
_QUOTED = re.compile(r'^ +(?:\w+: )?"(.*)",$', re.MULTILINE)
_SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_METADATA_SERVICE = re.compile(r"https?://[^/]+/latest/(?:api/token|meta-data/iam/)|http://169\.254\.170\.")


def is_failure(exc: BaseException) -> bool:
    """Whether it is about the request. Where Rust gives up, that is a ``BaseException`` that cannot be imported."""
    return isinstance(exc, _FAILURES) or type(exc).__name__ == "PanicException"


@dataclass(frozen=True, slots=True)
class Failure:
    """One exception of obstore, taken apart.

    Attributes:
        sentence, debug: the two halves of its text.
        status, body: the answer, ``None`` and empty where none came.
    """

    exc: BaseException
    sentence: str
    debug: str
    status: int | None
    body: str

    @classmethod
    def of(cls, exc: BaseException) -> Failure:
        """The parts of an exception's text; one that no debug form follows is all sentence."""
        # The last mark is obstore's own: one in a body stands below it, with its line breaks escaped.
        sentence, _, debug = str(exc).rpartition(_MARK)
        answer = _ANSWER.search(debug)
        if answer is None:
            return cls(exc, sentence or debug, debug if sentence else "", None, "")
        return cls(exc, sentence, debug, int(answer[1]), answer[2] or "")

    @property
    def range_ignored(self) -> bool:
        """Whether the server sent the whole object where a range was asked for."""
        return "source: NotPartial," in self.debug

    def error(self, request: Subject, settings: Settings, *, worked: bool) -> StoreError:
        """The error to raise, with the exception as its cause.

        Arguments:
            worked: whether a request of this client has succeeded, so that there were credentials.
        """
        error = self._error(request, settings, worked)
        error.__cause__ = self.exc if isinstance(error, ROUTINE) else self._cause(settings)
        return error

    def _error(self, request: Subject, settings: Settings, worked: bool) -> StoreError:
        if self._asked_for_credentials():
            kind = Unreachable if worked and self._is_transient() else BadCredentials
            answer = f"who gives them answered {self.status}: " if self.status else ""  # it was not S3
            return error_of(kind, request, settings, answer + self._reason())
        if self.status is not None:
            return self._answer(self.status).error(request, settings)
        if failed := _DELETE_FAILED.search(self.debug):
            return Answer(None, failed[1], failed[2]).error(request, settings)
        if self.sentence.endswith("InvalidHeaderValue"):  # metadata and content types are looked at before
            why = "the key id or the session token holds a line break, or another character that no header can carry"
            return error_of(BadCredentials, request, settings, why)
        return error_of(self._kind(settings), request, settings, self._reason())

    def _cause(self, settings: Settings) -> BaseException:
        """The exception without secrets: S3 answers a refused signature with the signed headers, tokens among them."""
        refused = self.status in (400, 401, 403)
        told = settings.redact(self.sentence.partition(" - ")[0] if refused else str(self.exc))
        return self.exc if told == str(self.exc) else type(self.exc)(told)

    def _answer(self, status: int) -> Answer:
        code = _field("Code", self.body)
        return Answer(
            status, code, _field("Message", self.body), _field("Region", self.body), bool(self.body) and not code
        )

    def _kind(self, settings: Settings) -> type[StoreError]:
        if self._timed_out_before(settings.read_timeout):
            return Unreachable
        for sign, kind in _SIGNS.items():
            if re.search(rf"^ *(?:inner: )?{sign}", self.debug, re.MULTILINE):
                return kind
        return next(_KINDS[cls.__name__] for cls in type(self.exc).__mro__ if cls.__name__ in _KINDS)

    def _timed_out_before(self, seconds: float) -> bool:
        """Whether a time-out came too early to be that of the answer: nobody took the connection."""
        elapsed = _ELAPSED.search(self.debug)
        if elapsed is None or "kind: Timeout," not in self.debug:
            return False
        return float(elapsed[1]) * _SECONDS[elapsed[2]] < seconds

    def _asked_for_credentials(self) -> bool:
        found = _URI.search(self.debug)
        if found is None:
            return False
        full = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        # No address: that is STS. obstore leaves its address out, because the token stands in it.
        return found[1] is None or bool(_METADATA_SERVICE.match(found[1])) or found[1] == full

    def _is_transient(self) -> bool:
        status = self.status
        return status is None or status == 429 or status >= 500

    def _reason(self) -> str:
        """The innermost texts of the debug form, as ``tcp connect error: Connection refused``."""
        quoted = _QUOTED.findall(self.debug.partition("inner: ")[2])
        words = [line.strip(" ,(){}") for line in self.debug.splitlines()]
        return ": ".join(filter(None, quoted)) or next(filter(None, reversed(words)), self.sentence)


def _field(name: str, body: str) -> str:
    text = body.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
    return html.unescape(text).replace('\\"', '"').replace("\\'", "'").replace("\\n", " ")
