"""The one place where requests are tried again.

::

    Throttled, Unreachable              try again after a random wait
    ServerFault, Conflict, Interrupted  the same; the request may have been carried out, which only matters to
                                        a conditional put: settled by reading
    everything else                     raised at once

How often: as the policy says; inside of :func:`~celery_s3.store.deadline.patient` at least for as long as that says,
but for conflicts, which are no outage. A caller's deadline bounds both.

Each request of an upload is tried again by itself, but for a completion that meets a conflict: its parts are lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom
from typing import Any, TypeVar

from celery_s3.errors import (
    AccessDenied,
    Conflict,
    ObjectMissing,
    PreconditionFailed,
    StoreError,
    Throttled,
    Transient,
)
from celery_s3.keys import Layout
from celery_s3.processes import PerProcess

from .api import Bucket, Store
from .counting import Tally
from .deadline import longer, patience, remaining
from .outage import Outage
from .requests import Create, Get, ListPage, Put, Request

__all__ = ["RetryPolicy", "Retrying"]

A = TypeVar("A")
#: Draws nothing from the generator that the application may have seeded.
_CHANCE = SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after what waits (seconds) a request is tried again: exponential, capped, with full jitter."""

    retries: int = 8
    base: float = 0.05
    throttled_base: float = 0.2
    cap: float = 5.0

    def wait(self, tries: int, error: Transient, share: float) -> float:
        """The seconds to wait after ``tries`` failures, for a random ``share`` between 0 and 1."""
        base = self.throttled_base if isinstance(error, Throttled) else self.base
        return share * min(self.cap, base * 2.0 ** min(tries - 1, 30))


#: Of what must not be lost: it waits, in any process, for as long as :func:`~celery_s3.store.deadline.patient` says.
PATIENT = RetryPolicy()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # looked up now: gevent and eventlet may have replaced it since the import


class Retrying(Bucket):
    """A store that tries again what is worth it, and raises the rest.

    Arguments:
        inner: makes the requests.
        policy: how often, and after what waits.
        tally: counts the retries; ``None``: they are not counted.
        name: of who is asked, for the log.
        missing_as_403: a GET that is denied reads as missing.
        base: what every key starts with; where listing is tried when a GET is denied.
        sleep, clock, random: seconds to wait, seconds now, a number between 0 and 1.
    """

    def __init__(
        self,
        inner: Store,
        *,
        policy: RetryPolicy | None = None,
        tally: Tally | None = None,
        missing_as_403: bool = False,
        base: str = "",
        name: str = "S3",
        sleep: Callable[[float], None] = _sleep,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _CHANCE.random,
    ) -> None:
        self._inner = inner
        self._policy = policy or RetryPolicy()
        outage = PerProcess(lambda: Outage(clock, name))
        self._means = _Means(tally, outage, sleep, clock, random)
        self._denied = _Denied(self, missing_as_403, base)

    def send(self, request: Request[A]) -> A:
        """Send a request until it is answered, or its budget is spent."""
        began = self._means.clock()
        try:
            answer = self._inner.send(request)
        except request.final:
            raise
        except AccessDenied as exc:
            self._raise_if_missing(request, exc)
            raise
        except Transient as exc:
            budget = _Budget(self._policy, self._means, began)
            budget.spend(request.verb, exc)
        else:
            self._denied.succeeded = True
            return answer
        return self._try_again(request, budget)

    def _try_again(self, request: Request[A], budget: _Budget) -> A:
        """Send a request that has failed once."""
        try:
            while True:
                try:
                    with longer(budget.failures):
                        answer = self._try_unclear(request)
                except request.final:
                    raise
                except Transient as exc:
                    budget.spend(request.verb, exc)
                else:
                    budget.answered = self._denied.succeeded = True
                    return answer
        except StoreError as exc:
            budget.answered = not isinstance(exc, Transient)
            raise
        finally:
            if budget.waiting:
                self._means.outage.get().left(answered=budget.answered)

    def _try_unclear(self, request: Request[A]) -> A:
        """Send a request once, of which an earlier try may have been carried out.

        A refused write is final on the first try; on a later one it may be an earlier try of our own that landed
        unseen: then what is stored is what we write.
        """
        try:
            return self._inner.send(request)
        except AccessDenied as exc:
            self._raise_if_missing(request, exc)
            raise
        except PreconditionFailed as refusal:
            if not isinstance(request, Put):
                raise
            ours: A = self._etag_if_ours(request, refusal)
            return ours

    def _raise_if_missing(self, request: Request[Any], denied: AccessDenied) -> None:
        """Raise that what is denied is missing, if it is."""
        if isinstance(request, Get) and self._denied.means_missing():
            why = denied.detail, "get", denied.bucket, request.key, denied.status, denied.code
            raise ObjectMissing(*why) from denied

    def _etag_if_ours(self, put: Put, refusal: PreconditionFailed) -> Any:
        """The etag of our own write, if that is what stands there."""
        try:
            stored = self._try_unclear(Get(put.key, length=max(1, len(put.body))))
        except ObjectMissing as exc:
            if isinstance(put.precondition, Create):
                why = "the write was refused, yet there is no object"
                raise Conflict(why, "put", refusal.bucket, put.key) from exc
            raise refusal from exc
        if stored.complete and stored.body == put.body:
            return stored.etag
        raise refusal

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()


@dataclass(frozen=True, slots=True)
class _Means:
    tally: Tally | None
    outage: PerProcess[Outage]
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    random: Callable[[], float]


class _Budget:
    """The tries that a request has which has failed once.

    Arguments:
        began: when its first try did, by the clock.

    Attributes:
        failures: tries that have failed.
        conflicts: how many of them met another request for the same key.
        waiting: the request is one of those that the outage's log counts.
        answered: the last try was.
    """

    __slots__ = ("_began", "_means", "_policy", "_since", "answered", "conflicts", "failures", "waiting")

    def __init__(self, policy: RetryPolicy, means: _Means, began: float) -> None:
        self._policy = policy
        self._means = means
        self._began = began
        self.failures = self.conflicts = 0
        self.waiting = self.answered = False

    def spend(self, verb: str, error: Transient) -> None:
        """Wait for the next try, or raise the error if there is none."""
        self.failures += 1
        self.conflicts += isinstance(error, Conflict)
        wait, spent = self._next(error)
        left = remaining()
        if spent or (left is not None and wait > left):
            raise self._last(error) from error
        if self._means.tally is not None:
            self._means.tally.retried(verb)
        self._means.sleep(wait)

    def _next(self, error: Transient) -> tuple[float, bool]:
        """The seconds to wait, and whether there is no more time for that."""
        share, left = self._means.random(), patience()
        if left is not None:
            self._tell(error)
            wait = PATIENT.wait(self.failures, error, share)
            if wait <= left and self.conflicts <= PATIENT.retries:
                return wait, False
        return self._policy.wait(self.failures, error, share), self.failures > self._policy.retries

    def _tell(self, error: Transient) -> None:
        outage = self._means.outage.get()
        if self.failures == 1:
            self._since = self._means.clock()
        if self.waiting:
            outage.lasts(error)
        else:
            self.waiting = outage.joined(error, self._since)

    def _last(self, error: Transient) -> Transient:
        tries = "1 try" if self.failures == 1 else f"{self.failures} tries"
        spent = f"{tries} in {self._means.clock() - self._began:.1f} s"
        detail = f"{error.detail.rstrip('.')}; {spent}" if error.detail else spent
        return type(error)(detail, error.operation, error.bucket, error.key, error.status, error.code)


class _Denied:
    """What 403 means for a GET: AWS answers it for absent keys too, to callers without s3:ListBucket.

    So it means that there is nothing where listing is denied as well, unless nothing ever worked here: then
    the credentials are simply not the right ones.
    """

    def __init__(self, store: Store, always: bool, base: str) -> None:
        self._store = store
        self._always = always
        self._prefix = Layout(base).probe
        self._may_list: bool | None = None
        #: whether a request has succeeded in this process, or before it was forked
        self.succeeded = False

    def means_missing(self) -> bool:
        return self._always or (self.succeeded and not self._listing_allowed())

    def _listing_allowed(self) -> bool:
        """One LIST (there is one such key at most), asked once and remembered."""
        if self._may_list is None:
            try:
                self._store.send(ListPage(self._prefix))
                self._may_list = True
            except AccessDenied:
                self._may_list = False
        return self._may_list
