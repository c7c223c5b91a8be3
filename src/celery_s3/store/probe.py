"""Whether the server honours ``If-None-Match`` and ``If-Match`` on a write: asked before it is relied upon.

By refusals and by acceptances: Ceph refuses a replacement of the very version that stands there, unless its etag comes
without quotes. Which form it takes is found out too, and every write after that has it.
"""

from __future__ import annotations

import enum
import mmap
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from celery_s3.errors import BadRequest, ConfigurationError, Conflict, PreconditionFailed
from celery_s3.keys import Layout
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess
from celery_s3.settings import Settings

from .api import CREATE, Bucket, Match, Precondition, Store
from .clients.translate import bare
from .requests import CompleteUpload, Delete, Put, Request

__all__ = ["ConditionalWrites", "Preconditions", "Verdict", "ask"]

logger = get_logger(__name__)

A = TypeVar("A")

_ANSWER, _WARNED = range(2)

#: How often the probe looks again where another process has replaced the object in between.
_RACES = 8
#: Bytes by which the probe's object tells how it was written.
_WORD = 10
#: An etag that no object has.
_NEVER = Match('"00000000000000000000000000000000"')

#: Seconds that a thread waits for another one's probe.
_PATIENCE = 1.0

#: What a server without the headers, or a proxy before it, answers to them.
_NOT_UNDERSTOOD = (400, 501)

_CONSEQUENCE = (
    "The S3 server at %s does not keep conditional writes (If-None-Match, If-Match): %s. Each result is read before"
    " it is written, at the price of one more request, and a late FAILURE or RETRY that arrives in the same moment may"
    " replace a SUCCESS; chords are joined by Celery's polling task. Upgrade the server, or set"
    " `conditional_writes` to 'off' to accept this silently or to 'required' to refuse such a server."
)


class Verdict(enum.IntEnum):
    """What a server makes of preconditions on a write."""

    UNKNOWN = 0
    #: as S3 does
    KEPT = 1
    #: as S3 does, where the etag of ``If-Match`` has no quotes
    KEPT_BARE = 2
    #: what should be refused is carried out
    IGNORED = 3
    #: what should be carried out is refused: the version that stands there cannot be replaced
    REFUSED = 4

    @property
    def supported(self) -> bool:
        """Whether a write can be relied upon to decide."""
        return self in (Verdict.KEPT, Verdict.KEPT_BARE)

    @property
    def words(self) -> str:
        """What was found, as the middle of a sentence."""
        return _WORDS[self]


_WORDS = {
    Verdict.UNKNOWN: "it was not asked",
    Verdict.KEPT: "create and replace are honoured",
    Verdict.KEPT_BARE: "create and replace are honoured, with the etag of If-Match sent without its quotes",
    Verdict.IGNORED: "a write that should be refused is carried out",
    Verdict.REFUSED: "a replacement of the version that stands there is refused",
}


def ask(store: Store, key: str) -> Verdict:
    """Find out by writing to a key: a create and a wrong replacement must be refused, a right one be carried out.

    Four requests (three PUT and a GET, or four PUT where nothing stood there), one more where quotes are refused.

    Raises:
        StoreError: the server could not be asked.
    """
    return _Question(store, key).verdict()


class _Question:
    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        #: etag and first bytes of what stands there, where this wrote it
        self._written: tuple[str, bytes] | None = None

    def verdict(self) -> Verdict:
        if not ((self._refuses(CREATE) or self._refuses(CREATE)) and self._refuses(_NEVER)):
            return Verdict.IGNORED
        etag, _ = self._written or self._read()
        for _ in range(_RACES):
            for form, verdict in ((etag, Verdict.KEPT), (bare(etag), Verdict.KEPT_BARE)):
                if self._replaces(Match(form), verdict):
                    return verdict
            before, (etag, words) = etag, self._read()
            if etag == before:
                return Verdict.REFUSED
            # Another one asks at the same time, and has replaced it: what the server took from him it takes from us.
            for verdict in (Verdict.KEPT, Verdict.KEPT_BARE):
                if words.startswith(_by(verdict)):
                    return verdict
        why = f"whether conditional writes work is not known: {_RACES} other writers came between"
        raise Conflict(why, "put", key=self._key)

    def _read(self) -> tuple[str, bytes]:
        found = self._store.get(self._key, length=_WORD)
        return found.etag, found.body

    def _refuses(self, precondition: Precondition) -> bool:
        try:
            self._written = self._write(precondition)
        except PreconditionFailed:
            return True
        except BadRequest as exc:
            if exc.status not in _NOT_UNDERSTOOD:
                raise
            # If the header is what it stumbles over, then the same without it succeeds; else that error is raised.
            self._written = self._write(None)
        return False

    def _replaces(self, version: Match, verdict: Verdict) -> bool:
        try:
            self._write(version, verdict)
        except PreconditionFailed:
            return False
        except BadRequest as exc:
            if exc.status not in _NOT_UNDERSTOOD:
                raise
            return False
        return True

    def _write(self, precondition: Precondition, verdict: Verdict = Verdict.UNKNOWN) -> tuple[str, bytes]:
        # New bytes each time: when its answer gets lost, a write that landed is recognised by them.
        body = _by(verdict) + f"celery-s3 asks whether conditional writes work here. {uuid.uuid4()}\n".encode()
        return self._store.put(self._key, body, precondition=precondition, content_type="text/plain"), body[:_WORD]


def _by(verdict: Verdict) -> bytes:
    """What the probe's object begins with: what its writer has found out by having written it."""
    return verdict.name.ljust(_WORD).encode()


class ConditionalWrites:
    """Whether conditional writes can be relied upon, asked at most once in a tree of processes.

    Arguments:
        settings: `conditional_writes` decides what is asked; `endpoint_url` whether it needs asking (AWS does not).
        store: answers the probe, in four or five requests.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._on_aws = settings.on_aws
        self._store = store
        self._shared = _shared_page(settings.endpoint_url or "", settings.bucket)
        self._asking = PerProcess(_lock)

    def supported(self) -> bool:
        """Whether the server honours preconditions.

        Raises:
            ConfigurationError: it does not, and `conditional_writes` is 'required'.
            StoreError: the server could not be asked; nothing is known yet.
        """
        if self._settings.conditional_writes == "off":
            return False
        verdict = self.verdict()
        if not verdict.supported:
            self._complain(verdict)
        return verdict.supported

    def verdict(self) -> Verdict:
        """What the server makes of preconditions; it is asked where nobody has yet.

        Raises:
            StoreError: the server could not be asked; nothing is known yet.
        """
        if self._on_aws:
            return Verdict.KEPT
        if not self._shared[_ANSWER] and self._settings.conditional_writes != "off":
            self._ask()
        return Verdict(self._shared[_ANSWER])

    def _ask(self) -> None:
        # One thread asks for all, since servers make many writers of one key wait. When that one meets trouble,
        # the others must not wait for its retries and then, one after the other, for their own.
        asking = self._asking.get()
        alone = asking.acquire(timeout=_PATIENCE)
        try:
            if not self._shared[_ANSWER]:
                self._shared[_ANSWER] = ask(self._store, Layout(self._settings.base).probe)
        finally:
            if alone:
                asking.release()

    def _complain(self, verdict: Verdict) -> None:
        where = self._settings.endpoint_url
        if self._settings.conditional_writes == "required":
            raise ConfigurationError(
                f"the S3 server at {where} does not keep conditional writes (If-None-Match, If-Match):"
                f" {verdict.words}, and `conditional_writes` says that they are required. Upgrade the server, or set"
                " it to 'auto'."
            )
        if not self._shared[_WARNED]:
            self._shared[_WARNED] = 1
            logger.warning(_CONSEQUENCE, where, verdict.words)


class Preconditions(Bucket):
    """A bucket whose writes name an etag in the form that the server takes.

    Whoever replaces or deletes a version waits for the probe's answer first, if there is none yet: a right etag that is
    refused for its quotes would look like another writer's, and a chord's owner would believe its claim lost.
    """

    def __init__(self, inner: Bucket, verdict: Callable[[], Verdict]) -> None:
        self._inner = inner
        self._verdict = verdict

    def send(self, request: Request[A]) -> A:
        """Send the request, with a bare etag where the server wants that."""
        if _names_version(request) and self._verdict() is Verdict.KEPT_BARE:
            request = _with_bare_etag(request)
        return self._inner.send(request)

    def close(self) -> None:
        """Close the bucket inside."""
        self._inner.close()


def _names_version(request: Request[Any]) -> bool:
    if isinstance(request, Put | CompleteUpload):
        return isinstance(request.precondition, Match)
    return isinstance(request, Delete) and request.if_match is not None


def _with_bare_etag(request: Any) -> Any:
    if isinstance(request, Delete):
        return replace(request, if_match=bare(request.if_match or ""))
    return replace(request, precondition=Match(bare(request.precondition.etag)))


def _lock() -> threading.Lock:
    return threading.Lock()  # looked up now: gevent and eventlet may have replaced it since the import


_pages: dict[tuple[str, str], mmap.mmap] = {}


def _shared_page(endpoint_url: str, bucket: str) -> mmap.mmap:
    """Memory that forked children share with their parent, zero at first.

    A backend is made in a prefork worker's parent, which asks nothing itself: so what one child finds out, its
    siblings and their successors read here, and `--max-tasks-per-child=1` costs no probe for each task.
    """
    page = _pages.get((endpoint_url, bucket))
    if page is None:
        page = _pages.setdefault((endpoint_url, bucket), mmap.mmap(-1, mmap.PAGESIZE))
    return page
