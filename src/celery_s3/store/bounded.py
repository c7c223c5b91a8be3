"""No request takes longer than it may: its own time, and what its caller has left.

A client that ends a request by itself in time is simply asked. Otherwise the request is sent in another thread, and
whoever waits for it goes on when the time is over, or when a signal comes: a soft time limit, Ctrl-C.
"""

from __future__ import annotations

import threading
from typing import Any, Generic, Protocol, TypeVar

from celery_s3.errors import Interrupted, Unreachable
from celery_s3.settings import Settings

from .api import Bucket
from .deadline import GRACE, remaining
from .parallel import Threads
from .requests import Request

__all__ = ["Bounded", "Client"]

A = TypeVar("A")

#: Requests that others wait for at a time, those that were given up and have not ended yet included.
THREADS = 512


class Client(Protocol):
    """What makes the requests, and knows how long each of them may take."""

    def send(self, request: Request[A]) -> A:
        """Make one request and return its answer."""

    def seconds(self, request: Request[Any]) -> tuple[float, bool]:
        """What a request may take from its beginning to the last byte of its answer, and whether it ends by itself."""

    def cut(self, thread: int) -> None:
        """Nobody waits any more for what this thread has asked: let it end soon, if that can be done."""

    def close(self) -> None:
        """Let go of connections."""


class Bounded(Bucket):
    """A store that keeps to the time that a request has; one of a process."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._bucket = settings.bucket
        self._threads = Threads(THREADS)

    def send(self, request: Request[A]) -> A:
        """Send a request, and wait for its answer no longer than it may take.

        Raises:
            Interrupted: there was no answer in that time; a write may land all the same.
            Unreachable: it was not even sent in that time.
        """
        left = remaining()
        seconds, by_itself = self._client.seconds(request)
        if by_itself and (left is None or seconds <= left):
            return self._client.send(request)
        if left is not None:
            seconds = min(seconds, max(left, GRACE))
        call = _Call(self._client, request)
        self._threads.submit(call)
        answered = False
        try:
            answered = call.wait(seconds)
        finally:
            if not answered:
                call.give_up()
        if answered:
            return call.answer()
        kind, why = (Interrupted, "no answer") if call.begun else (Unreachable, "no thread was free")
        raise kind(f"{why} within {seconds:.1f} s", request.operation, self._bucket, request.key)

    def close(self) -> None:
        """Let go of the client's connections; requests that were given up end by themselves."""
        self._client.close()


class _Call(Generic[A]):
    """One request on its way in another thread.

    Attributes:
        begun: it is being sent, or was.
    """

    __slots__ = ("_answer", "_client", "_done", "_error", "_given_up", "_lock", "_request", "_thread", "begun")
    _answer: A

    def __init__(self, client: Client, request: Request[A]) -> None:
        self._client = client
        self._request = request
        self._done = threading.Lock()
        self._done.acquire()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._given_up = self.begun = False
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """In the other thread: send it."""
        with self._lock:
            if self._given_up:
                return
            self._thread, self.begun = threading.get_ident(), True
        try:
            self._answer = self._client.send(self._request)
        except BaseException as exc:  # noqa: BLE001 - whoever waits gets it
            self._error = exc
        with self._lock:
            self._thread = None
        self._done.release()

    def wait(self, seconds: float) -> bool:
        """Whether it is over after so many seconds at most."""
        return self._done.acquire(timeout=seconds)

    def give_up(self) -> None:
        """Want no answer any more."""
        with self._lock:
            self._given_up = True
            if self._thread is not None:
                self._client.cut(self._thread)

    def answer(self) -> A:
        """What was answered, or the error that it was."""
        error, self._error = self._error, None
        if error is None:
            return self._answer
        try:
            raise error
        finally:
            del error  # no circle of error, traceback and frame
