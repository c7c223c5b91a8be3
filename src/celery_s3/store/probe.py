"""Whether the server honours ``If-None-Match`` and ``If-Match`` on a write: asked before it is relied upon."""

from __future__ import annotations

import mmap
import threading
import uuid

from celery_s3.errors import BadRequest, ConfigurationError, PreconditionFailed, StoreError
from celery_s3.keys import Layout
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess
from celery_s3.settings import Settings

from .api import CREATE, Match, Precondition, Store

__all__ = ["ConditionalWrites"]

logger = get_logger(__name__)

_UNKNOWN, _YES, _NO = range(3)
_ANSWER, _WARNED = range(2)

#: Seconds that a thread waits for another one's probe.
_PATIENCE = 1.0

#: What a server without the headers, or a proxy before it, answers to them.
_NOT_UNDERSTOOD = (400, 501)

_CONSEQUENCE = (
    "The S3 server at %s ignores conditional writes (If-None-Match, If-Match). Each result is read before it is"
    " written, at the price of one more request, and a late FAILURE or RETRY that arrives in the same moment may"
    " replace a SUCCESS; chords are joined by Celery's polling task. Upgrade the server, or set"
    " `conditional_writes` to 'off' to accept this silently or to 'required' to refuse such a server."
)


class ConditionalWrites:
    """Whether conditional writes can be relied upon, asked at most once in a tree of processes.

    Arguments:
        settings: `conditional_writes` decides what is asked; `endpoint_url` whether it needs asking (AWS does not).
        store: answers the probe, in two or three requests.
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
        if self._on_aws:
            return True
        if self._shared[_ANSWER] == _UNKNOWN:
            self._ask()
        if self._shared[_ANSWER] == _YES:
            return True
        self._complain()
        return False

    def _ask(self) -> None:
        # One thread asks for all, since servers make many writers of one key wait. When that one meets trouble,
        # the others must not wait for its retries and then, one after the other, for their own.
        asking = self._asking.get()
        alone = asking.acquire(timeout=_PATIENCE)
        try:
            if self._shared[_ANSWER] == _UNKNOWN:
                self._shared[_ANSWER] = _YES if self._probe() else _NO
        finally:
            if alone:
                asking.release()

    def _probe(self) -> bool:
        """A create must be refused where an object stands, then a replacement of a version that never was."""
        created = self._refused(CREATE) or self._refused(CREATE)
        return created and self._refused(Match('"00000000000000000000000000000000"'))

    def _refused(self, precondition: Precondition) -> bool:
        try:
            self._write(precondition)
        except PreconditionFailed:
            return True
        except StoreError as exc:
            if not isinstance(exc, BadRequest) or exc.status not in _NOT_UNDERSTOOD:
                raise
            # If the header is what it stumbles over, then the same without it succeeds; else that error is raised.
            self._write(None)
        return False

    def _write(self, precondition: Precondition) -> None:
        # New bytes each time: when its answer gets lost, a write that landed is recognised by them.
        body = f"celery-s3 asks whether conditional writes work here. {uuid.uuid4()}\n".encode()
        self._store.put(Layout(self._settings.base).probe, body, precondition=precondition, content_type="text/plain")

    def _complain(self) -> None:
        where = self._settings.endpoint_url
        if self._settings.conditional_writes == "required":
            raise ConfigurationError(
                f"the S3 server at {where} ignores conditional writes (If-None-Match, If-Match), which"
                " `conditional_writes` says are required. Upgrade the server, or set it to 'auto'."
            )
        if not self._shared[_WARNED]:
            self._shared[_WARNED] = 1
            logger.warning(_CONSEQUENCE, where)


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
