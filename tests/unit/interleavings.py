"""Every interleaving of some parties' steps, up to the order of steps that do not touch each other.

A party is a function that runs in a greenlet and stops before each of its steps (:meth:`Run.pause`); the explorer
decides who goes on. It is the "source DPOR" of Abdulla, Aronis, Jonsson and Sagonas (POPL 2014): of all interleavings
that differ only in the order of independent steps, one is run. Two steps depend on each other when they touch the same
object and one of them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from greenlet import GreenletExit, getcurrent, greenlet

__all__ = ["Run", "Step", "explore"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a party does next: it reads or writes an object; ``""`` is none that others touch."""

    name: str
    object: str = ""
    writes: bool = True

    def depends_on(self, other: Step) -> bool:
        return bool(self.object) and self.object == other.object and (self.writes or other.writes)


@dataclass(frozen=True, slots=True)
class Event:
    party: str
    step: Step
    #: per party, how many of its steps happened before this one, which is counted
    clock: dict[str, int]

    def before(self, clock: dict[str, int]) -> bool:
        """Whether it happened before everything with that clock does."""
        return clock.get(self.party, 0) >= self.clock[self.party]


class Run:
    """One run of a world; subclasses start parties, first in :meth:`begin`."""

    def __init__(self) -> None:
        self.parties: dict[str, greenlet] = {}
        self.pending: dict[str, Step] = {}
        self.steps: dict[str, int] = {}
        self.phase = 0
        self.closed = False
        self._names: dict[greenlet, str] = {}

    def begin(self) -> None:
        """Start the parties of the first phase."""
        raise NotImplementedError

    def quiet(self) -> None:
        """Nobody has a step left: start the parties of the next phase, if there is one."""

    def crashes(self, party: str) -> bool:
        """Whether the party dies now, having done ``steps[party]`` steps."""
        return False

    def start(self, name: str, fn: Callable[[], object]) -> None:
        assert name not in self.parties
        party = greenlet(fn)
        self.parties[name], self._names[party], self.steps[name] = party, name, 0
        self._switch(name)

    def current(self) -> str:
        """Who is running."""
        return self._names[getcurrent()]

    def pause(self, step: Step) -> None:
        """Called by a party before each of its steps."""
        if self.closed:
            raise GreenletExit
        party = getcurrent()
        self.pending[self._names[party]] = step
        party.parent.switch()
        if self.closed:
            raise GreenletExit

    def do(self, name: str) -> None:
        """Let a party do its step."""
        del self.pending[name]
        self.steps[name] += 1
        self._switch(name)

    def _switch(self, name: str) -> None:
        party = self.parties[name]
        party.parent = getcurrent()
        party.switch()
        if name in self.pending and self.crashes(name):
            del self.pending[name]

    def enabled(self) -> list[str]:
        if not self.pending:
            self.phase += 1
            self.quiet()
        return list(self.pending)

    def close(self) -> None:
        self.closed = True
        for party in self.parties.values():
            if party:
                party.parent = getcurrent()
                party.throw(GreenletExit)


@dataclass
class _Choice:
    """A state, and what is to be tried there."""

    pending: dict[str, Step]
    phase: int
    sleeping: set[str]
    todo: set[str]
    chosen: str = ""
    event: Event | None = None


def explore(make: Callable[[], Run], limit: int | None = None) -> Iterator[Run]:
    """Yield each run at its end; at most ``limit`` of them."""
    path: list[_Choice] = []
    count = 0
    while True:
        run = make()
        try:
            run.begin()
            for choice in path:
                run.enabled()
                run.do(choice.chosen)
            if _extend(run, path):
                yield run
                count += 1
        finally:
            run.close()
        if count == limit or not _next(path):
            return


def _next(path: list[_Choice]) -> bool:
    """Go back to the last state where something is left to be tried."""
    while path:
        choice = path[-1]
        choice.sleeping.add(choice.chosen)
        left = sorted(choice.todo - choice.sleeping)
        if left:
            _choose(path, left[0])
            return True
        path.pop()
    return False


def _extend(run: Run, path: list[_Choice]) -> bool:
    """Run to the end; ``False`` where all that is left has been tried in another order."""
    while enabled := run.enabled():
        asleep = _still_asleep(path[-1]) if path else set()
        awake = [party for party in enabled if party not in asleep]
        if not awake:
            return False
        path.append(_Choice(dict(run.pending), run.phase, asleep & set(enabled), {awake[0]}))
        _choose(path, awake[0])
        run.do(awake[0])
    return True


def _still_asleep(choice: _Choice) -> set[str]:
    did = choice.pending[choice.chosen]
    return {one for one in choice.sleeping if one != choice.chosen and not choice.pending[one].depends_on(did)}


def _choose(path: list[_Choice], party: str) -> None:
    """Let a party go on from the last state, and note the races of its step with earlier ones."""
    here = path[-1]
    step, races = here.pending[party], []
    clock: dict[str, int] = {}
    for index in range(len(path) - 2, -1, -1):
        event = path[index].event
        assert event is not None
        if event.party == party and not event.before(clock):
            _merge(clock, event.clock)
    for index in range(len(path) - 2, -1, -1):
        event = path[index].event
        assert event is not None
        if step.depends_on(event.step) and not event.before(clock):
            if path[index].phase == here.phase:
                races.append(index)
            _merge(clock, event.clock)
    clock[party] = clock.get(party, 0) + 1
    here.chosen, here.event = party, Event(party, step, clock)
    for index in races:
        _reverse(path, index)


def _merge(clock: dict[str, int], other: dict[str, int]) -> None:
    for name, count in other.items():
        if count > clock.get(name, 0):
            clock[name] = count


def _reverse(path: list[_Choice], index: int) -> None:
    """The last event could have come before that one: see that somebody with whom this can begin is tried there."""
    raced = path[index].event
    assert raced is not None
    others: list[Event] = []
    first: set[str] = set()
    for choice in path[index + 1 :]:
        event = choice.event
        assert event is not None
        if raced.before(event.clock) and choice is not path[-1]:
            continue
        if not any(one.before(event.clock) for one in others):
            first.add(event.party)
        others.append(event)
    if not first & path[index].todo:
        path[index].todo.add(min(first))
