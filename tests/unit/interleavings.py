"""Every interleaving of some parties' steps, up to the order of steps that do not touch each other.

A party is a function that runs in a greenlet and stops before each of its steps (:meth:`Run.pause`); the explorer
decides who goes on. It is the "source DPOR" of Abdulla, Aronis, Jonsson and Sagonas (POPL 2014): of all interleavings
that differ only in the order of independent steps, one is run. Two steps depend on each other when they touch the same
object and one of them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
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
        #: whether this run went on no further, because another one did from here
        self.known = False
        self._names: dict[greenlet, str] = {}

    def begin(self) -> None:
        """Start the parties of the first phase."""
        raise NotImplementedError

    def quiet(self) -> None:
        """Nobody has a step left: start the parties of the next phase, if there is one."""

    def version(self, object: str) -> object:
        """Something that differs whenever the object does."""
        raise NotImplementedError

    def fingerprint(self) -> Hashable | None:
        """When nobody has a step left: two runs that answer the same go on the same; ``None``: not known."""
        return None

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

    def do(self, name: str) -> Step:
        """Let a party do its step, and say what it did: a write that changes nothing is none."""
        step = self.pending.pop(name)
        self.steps[name] += 1
        before = self.version(step.object) if step.writes else None
        self._switch(name)
        changed = step.writes and self.version(step.object) != before
        return Step(step.name, step.object, changed)

    def _switch(self, name: str) -> None:
        party = self.parties[name]
        party.parent = getcurrent()
        party.switch()
        if name in self.pending and self.crashes(name):
            del self.pending[name]

    def enabled(self) -> list[str]:
        """Who has a step to do, in the next phase if nobody has in this one."""
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
    """A state, and what is to be tried there.

    ``sleeping`` has what need not be tried any more, with what those steps did when they were.
    """

    phase: int
    sleeping: dict[str, Step]
    todo: set[str]
    chosen: str
    event: Event | None = None


def explore(make: Callable[[], Run]) -> Iterator[Run]:
    """Yield each run at its end; of those that go on the same from a moment when nobody had a step left, one."""
    path: list[_Choice] = []
    known: set[Hashable] = set()
    while True:
        run = make()
        try:
            run.begin()
            for choice in path[:-1]:
                run.enabled()
                run.do(choice.chosen)
            if path:
                run.enabled()
                _go_on(run, path)
            if _extend(run, path, known):
                yield run
        finally:
            run.close()
        if not _next(path):
            return


def _next(path: list[_Choice]) -> bool:
    """Go back to the last state where something is left to be tried."""
    while path:
        choice = path[-1]
        assert choice.event is not None
        choice.sleeping[choice.chosen] = choice.event.step
        left = sorted(choice.todo - choice.sleeping.keys())
        if left:
            choice.chosen = left[0]
            return True
        path.pop()
    return False


def _extend(run: Run, path: list[_Choice], known: set[Hashable]) -> bool:
    """Run to the end; ``False`` where all that is left has been tried, in another order or after another run."""
    while run.pending or _goes_on(run, known):
        asleep = _still_asleep(path[-1]) if path else {}
        awake = [party for party in run.pending if party not in asleep]
        if not awake:
            return False
        path.append(_Choice(run.phase, asleep, {awake[0]}, awake[0]))
        _go_on(run, path)
    return not run.known


def _goes_on(run: Run, known: set[Hashable]) -> bool:
    """Start the next phase, unless the same one has been run."""
    fingerprint = run.fingerprint()
    run.known = fingerprint in known
    if fingerprint is not None:
        known.add(fingerprint)
    return not run.known and bool(run.enabled())


def _still_asleep(choice: _Choice) -> dict[str, Step]:
    did = choice.event.step  # type: ignore[union-attr]
    return {one: step for one, step in choice.sleeping.items() if one != choice.chosen and not step.depends_on(did)}


def _go_on(run: Run, path: list[_Choice]) -> None:
    """Let the chosen party do its step in the last state, and note the races of that step with earlier ones."""
    here = path[-1]
    party, races = here.chosen, []
    step = run.do(party)
    clock: dict[str, int] = {}
    earlier = [(index, choice.event) for index, choice in enumerate(path[:-1])][::-1]
    for _, event in earlier:
        if event.party == party:  # type: ignore[union-attr]
            _merge(clock, event.clock)  # type: ignore[union-attr]
            break
    for index, event in earlier:
        assert event is not None
        if step.depends_on(event.step) and not event.before(clock):
            if path[index].phase == here.phase:
                races.append(index)
            _merge(clock, event.clock)
    clock[party] = clock.get(party, 0) + 1
    here.event = Event(party, step, clock)
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
