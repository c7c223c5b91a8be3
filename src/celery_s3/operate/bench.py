"""How fast a bucket is from here, and what it cost to find out: the logic of ``celery s3 bench``.

Everything happens under a scratch prefix of its own, which is removed in the end, however it ends.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

from celery_s3.costs.prices import Prices, requests_cost, transfer_cost
from celery_s3.errors import AccessDenied, StoreError
from celery_s3.keys import Layout
from celery_s3.store.api import CREATE, Precondition, Store
from celery_s3.store.counting import Snapshot, Tally, difference, pages, requests_in
from celery_s3.store.parallel import Pool

__all__ = ["Bench", "Plan", "Row"]

LISTINGS = 10
READS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        count: objects that are put, created and fetched one by one.
        size: of each, in bytes.
        concurrency: requests at the same time, for these.
        abreast: requests at the same time where many are fetched at once.
    """

    count: int
    size: int
    concurrency: int
    abreast: int

    @property
    def samples(self) -> int:
        """How many times something is measured."""
        return 3 * self.count + READS + LISTINGS

    @property
    def requests(self) -> dict[str, int]:
        """The requests by verb, without retries; deleting, which is free, apart."""
        return {
            "PUT": 1 + 2 * self.count,
            "GET": (1 + READS) * self.count,
            "LIST": LISTINGS * pages(2 * self.count),
        }

    def dollars(self, prices: Prices) -> float:
        """What that costs, without retries."""
        moved = self.requests["PUT"] * self.size, self.requests["GET"] * self.size
        return requests_cost(self.requests, prices) + transfer_cost(*moved, prices)


@dataclass(frozen=True, slots=True)
class Row:
    """How one operation did.

    Attributes:
        seconds: of each sample, ascending; empty where the operation was denied.
        requests: that it made, retries included.
        elapsed: seconds for all of it.
        denied: why nothing was measured; else empty.
    """

    operation: str
    seconds: Sequence[float]
    requests: int
    elapsed: float
    denied: str = ""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.elapsed if self.elapsed else 0.0

    def percentile(self, share: float) -> float:
        """The smallest sample that this share of all does not exceed, in seconds."""
        return self.seconds[max(0, math.ceil(share * len(self.seconds)) - 1)] if self.seconds else math.nan


class Bench:
    """Measures a store.

    Arguments:
        layout: where to write.
        tally: what the store counts in.
        clock: seconds that pass.
        moved: told how many more samples there are.
    """

    def __init__(
        self,
        store: Store,
        tally: Tally,
        layout: Layout,
        plan: Plan,
        clock: Callable[[], float] = time.perf_counter,
        moved: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._moved = moved
        self._store = store
        self._tally = tally
        self._plan = plan
        self._clock = clock
        self._prefix = layout.bench_key(uuid4().hex)
        self._written: list[str] = []
        self._before: Snapshot = tally.snapshot()

    def rows(self) -> Iterator[Row]:
        """Each operation in turn; closing the iterator, or an error, removes what was written all the same.

        Raises:
            StoreError: the bucket does not do what was asked; a listing alone may be denied.
        """
        many = Pool(self._plan.abreast)
        first: BaseException | None = None
        try:
            yield from self._operations(many)
        except BaseException as exc:
            first = exc
            raise
        finally:
            many.close()
            self._remove(first)

    def _operations(self, many: Pool) -> Iterator[Row]:
        body, get = os.urandom(self._plan.size), self._store.get
        plain, created = self._keys("plain"), self._keys("created")
        # The first request connects: that is not what is measured.
        self._put(f"{self._prefix}first", body)
        yield self._each("put", lambda key: self._put(key, body), plain)
        yield self._each("conditional put", lambda key: self._put(key, body, CREATE), created)
        yield self._each("get", get, plain)
        yield self._repeated("get many", lambda: many.map(get, plain), READS)
        yield self._listings()

    def _remove(self, first: BaseException | None) -> None:
        """Remove what was written; where ``first`` was raised before, a failure here becomes a note of that error."""
        try:
            self._store.delete_many(self._written)
        except StoreError as exc:
            if first is None or isinstance(first, GeneratorExit):
                raise
            first.add_note(f"What was written under {self._prefix} could not be removed: {exc}")

    def _put(self, key: str, body: bytes, precondition: Precondition = None) -> None:
        # Noted before the request: after an interrupt, nobody would know whether it was carried out.
        self._written.append(key)
        self._store.put(key, body, precondition=precondition)

    @property
    def spent(self) -> Snapshot:
        """The requests so far, the removal too."""
        return difference(self._tally.snapshot(), self._before)

    def _keys(self, kind: str) -> list[str]:
        return [f"{self._prefix}{kind}-{number:06}" for number in range(self._plan.count)]

    def _listings(self) -> Row:
        try:
            return self._repeated("list", lambda: list(self._store.list(self._prefix)), LISTINGS)
        except AccessDenied:
            return Row("list", (), 0, 0.0, "denied: it needs s3:ListBucket")

    def _each(self, operation: str, act: Callable[[str], object], keys: Sequence[str]) -> Row:
        threads = ThreadPoolExecutor(self._plan.concurrency) if self._plan.concurrency > 1 else None
        run = threads.map if threads else map
        try:
            return self._measured(operation, lambda timed: list(run(lambda key: timed(lambda: act(key)), keys)))
        finally:
            if threads:
                # After an interrupt those under way must be over before what they wrote is removed.
                threads.shutdown(wait=True, cancel_futures=True)

    def _repeated(self, operation: str, act: Callable[[], object], times: int) -> Row:
        return self._measured(operation, lambda timed: [timed(act) for _ in range(times)])

    def _measured(self, operation: str, work: Callable[[Callable[[Callable[[], object]], float]], list[float]]) -> Row:
        before, began = self._tally.snapshot(), self._clock()
        seconds = work(self._timed)
        elapsed = self._clock() - began
        spent = difference(self._tally.snapshot(), before)
        return Row(operation, sorted(seconds), requests_in(spent).total(), elapsed)

    def _timed(self, act: Callable[[], object]) -> float:
        began = self._clock()
        act()
        seconds = self._clock() - began
        self._moved(1)
        return seconds
