"""What a deployment asks of S3: a pure model of this backend, and one of Celery's own `s3` backend beside it.

The model counts requests. Where they depend on time, the real schedules of :mod:`celery_s3.results.waiting` run on a
clock of its own; where they depend on the tree of a chord, the real :class:`celery_s3.chords.Chords` runs on a bucket
in memory.
Its assumptions:

* nothing fails, is retried, or stored in more than its final state;
* a request takes 20 ms, and a client reads 64 results at once;
* the members of a group or of a chord's header end in their order, evenly over the time that is waited for them, and
  no process runs two members of one node of a chord's tree. (A process that does reads less; members that end in
  another order need up to one GET more each.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from celery_s3.chords import Chords, Decision, Manifest
from celery_s3.chords.parts import INLINE_BYTES
from celery_s3.codec.chunks import LARGE
from celery_s3.results import waiting
from celery_s3.results.write_once import HEAD_BYTES, PART_BYTES
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.uploads import part_bytes

from .prices import Prices, requests_cost, storage_cost, transfer_cost

__all__ = ["Deployment", "Work", "celery_own", "celery_s3", "cost_of"]

#: Seconds that a request takes, and how many are made at the same time.
REQUEST = 0.020
ABREAST = 64
#: Seconds: Celery's default for `interval`, and for `result_chord_retry_interval`, which is also its first countdown.
POLL = 0.5
UNLOCK = 1.0
#: Seconds. Of no chord here does an owner die.
LEASE = 30.0

_PARTS = "members' parts"
_SUMMARIES = "summaries of up to 32 parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The shape of a deployment.

    Attributes:
        tasks: how many tasks store a result.
        size: of a stored result, in bytes.
        fetch: the share of results that a client fetches, 0 to 1; with ``chord``, of the bodies' results.
        wait: seconds that the client waits for what it fetches; 0: it is there already.
        group: the tasks are called in groups of so many, and fetched by `GroupResult.get()`; 0: one by one.
        chord: the tasks are the headers of chords of so many; each body stores a result more; 0: no chords.
        keep: days until a result is deleted.
    """

    tasks: int = 1_000_000
    size: int = 1024
    fetch: float = 1.0
    wait: float = 0.0
    group: int = 0
    chord: int = 0
    keep: float = 1.0

    @property
    def chords(self) -> float:
        """How many chords there are."""
        return self.tasks / self.chord if self.chord else 0.0

    @property
    def results(self) -> float:
        """The results stored, those of bodies too."""
        return self.tasks + self.chords

    @property
    def fetched(self) -> float:
        """The results that clients fetch."""
        return (self.chords if self.chord else self.tasks) * self.fetch


@dataclass(frozen=True, slots=True)
class Work:
    """One reason for requests: how many of one verb, and the bytes that they move."""

    what: str
    verb: str
    requests: float
    up: float = 0.0
    down: float = 0.0

    def dollars(self, prices: Prices) -> float:
        """What the requests and the bytes that they move cost, storage apart."""
        return requests_cost({self.verb: self.requests}, prices) + transfer_cost(self.up, self.down, prices)


def cost_of(work: Iterable[Work], shape: Deployment, prices: Prices) -> float:
    """The dollars for requests and storage together."""
    stored = storage_cost(shape.results * shape.size, shape.keep, prices)
    return sum(one.dollars(prices) for one in work) + stored


@dataclass
class _Clock:
    """Time that passes when somebody sleeps or asks."""

    now: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, verb: str, abreast: int = 1) -> None:
        """One request, alone or with others at the same time."""
        self.requests[verb] = self.requests.get(verb, 0) + 1
        self.now += REQUEST / abreast


def _ends(members: int, wait: float) -> list[float]:
    """When each member ends."""
    return [wait * (index + 1) / members for index in range(members)]


# -- this backend


def celery_s3(shape: Deployment) -> list[Work]:
    """The requests of this backend."""
    work = [Work("store each result", "PUT", shape.results * _puts(shape.size), up=shape.results * shape.size)]
    if shape.size > LARGE:
        work.append(Work("store: is there a result?", "GET", shape.results))
    if shape.chord:
        work += _chords(shape)
    if shape.fetch:
        work += _fetching(shape)
    return work


def _puts(size: int) -> int:
    """The requests that write one result: of an upload its beginning, its parts and its completion."""
    return 1 if size <= LARGE else 2 - (-size // part_bytes(size))


def _fetching(shape: Deployment) -> Iterator[Work]:
    fetched = shape.fetched
    yield Work("fetch", "GET", fetched * _gets(shape.size), down=fetched * shape.size)
    if shape.wait:
        group = shape.group if not shape.chord else 0
        in_vain = _group_looks(group, shape.wait) / group if group else _looks(shape.wait)
        yield Work("looks before it is there", "GET", fetched * in_vain)


def _gets(size: int) -> int:
    """The requests for one stored result: its beginning, and the rest in parts."""
    return 1 + max(0, -(-(size - HEAD_BYTES) // PART_BYTES))


def _looks(wait: float) -> int:
    """The looks at one result before it is there."""
    clock = _Clock()

    def look() -> bool | None:
        clock.ask("GET")
        return True if clock.now >= wait else None

    waiting.until(look, delay=_delay(), clock=clock)
    return clock.requests["GET"] - 1


def _group_looks(members: int, wait: float) -> int:
    """The looks at members of one group that were not there."""
    clock = _Clock()
    ends = _ends(members, wait)

    def ask(next_question: waiting.NextQuestion) -> Iterator[tuple[str, bool | None]]:
        while (id := next_question()) is not None:
            clock.ask("GET", ABREAST)
            yield id, True if clock.now >= ends[int(id)] else None

    for _ in waiting.each(map(str, range(members)), ask, delay=_delay(), clock=clock):
        pass
    return clock.requests["GET"] - members


def _delay() -> waiting.Delay:
    return waiting.adaptive(jitter=lambda low, high: (low + high) / 2)


def _chords(shape: Deployment) -> Iterator[Work]:
    requests = _chord(shape.chord, min(shape.size, INLINE_BYTES + 1))
    for (what, verb), count in requests.items():
        # Each value is written and read once as a part, and small ones once more in a summary.
        carried = what == _PARTS or (what == _SUMMARIES and shape.size <= INLINE_BYTES)
        moved = float(shape.tasks * shape.size) if carried else 0.0
        up, down = (moved, 0.0) if verb == "PUT" else (0.0, moved)
        yield Work(f"chords: {what}", verb, shape.chords * count, up, down)


def _chord(members: int, size: int) -> Counter[tuple[str, str]]:
    """What one chord asks, its own results apart, by purpose and verb: the real protocol on a bucket in memory."""
    store, pool = MemoryStore(), Pool(1)

    def process() -> Chords:
        return Chords(store, pool, "celery-chords/", lease=LEASE)

    ids = tuple(map(str, range(members)))
    ticket = process().open("group", Manifest(ids, None, b""))
    assert ticket is not None, "it has not been applied before"
    for index, id in enumerate(ids):
        own = process()
        delivery = own.deliver(ticket, id, index, bytes(size))
        whole = delivery.climb() if delivery else None
        if whole:
            Decision(own, ticket, *whole, lambda *_: lambda: "sent").go()
    return Counter((_purpose(key), verb) for verb, key in store.requests if verb in ("PUT", "GET"))


def _purpose(key: str) -> str:
    *_, level, name = key.split("/")
    if not name.isdecimal():
        return name
    return _PARTS if level == "0" else _SUMMARIES


# -- Celery's own


def celery_own(shape: Deployment) -> list[Work]:
    """The requests of Celery's own `s3` backend: a HEAD before each GET, and one before each PUT."""
    work = [
        Work("store: is there a result?", "HEAD", shape.results),
        Work("store each result", "PUT", shape.results, up=shape.results * shape.size),
    ]
    if shape.chord:
        work += _work("chords: chord_unlock reads the header", _unlocking(shape), shape.chords, shape.size)
    if shape.fetch:
        what = "fetch, with a look each half second" if shape.wait else "fetch"
        units, simulate = _unit(shape)
        work += _work(what, simulate(shape), units * shape.fetch, shape.size)
    return work


def _work(what: str, requests: dict[str, int], times: float, size: int) -> Iterator[Work]:
    for verb, count in requests.items():
        yield Work(what, verb, times * count, down=times * count * size if verb == "GET" else 0.0)


def _unit(shape: Deployment) -> tuple[float, Callable[[Deployment], dict[str, int]]]:
    """How many times a client waits, and what one of these times asks."""
    if shape.chord:
        return shape.chords, _body
    return (shape.tasks / shape.group, _join) if shape.group else (shape.tasks, _join)


def _own_look(clock: _Clock, ends: float) -> bool:
    clock.ask("HEAD")
    there = clock.now >= ends
    if there:
        clock.ask("GET")
    return there


def _join(shape: Deployment) -> dict[str, int]:
    """`get()` on one result, or on each member of a group, one after the other."""
    clock = _Clock()
    for ends in _ends(shape.group or 1, shape.wait):
        while not _own_look(clock, ends):
            clock.sleep(POLL)
    return clock.requests


def _body(shape: Deployment) -> dict[str, int]:
    """`get()` on a chord's body: on every interval it asks each member of the header that it has not seen ready."""
    clock = _Clock()
    unready = _ends(shape.chord, shape.wait)
    while True:
        unready = [ends for ends in unready if not _own_look(clock, ends)]
        if _own_look(clock, shape.wait):
            return clock.requests
        clock.sleep(POLL)


def _unlocking(shape: Deployment) -> dict[str, int]:
    """`chord_unlock` each second: it reads members from the first on until one is not ready, anew each time."""
    clock = _Clock()
    ends = _ends(shape.chord, shape.wait)
    ready = False
    while not ready:
        clock.sleep(UNLOCK)
        ready = all(_own_look(clock, end) for end in ends)
    return clock.requests
