"""The protocol of chords, checked: the real code of every party, every interleaving of its requests.

A party is a worker that delivers one member: its requests to the store, and the message to the broker, are the steps
between which others go on. Nodes have two slots here instead of 32, so that few members make a tree. A crash is a
party that stops before one of its steps, for each of them in turn; a fault is a step that fails, the store having done
it or not, or the broker being away. Time passes only where a test lets it. What a process leaves is gone on with by
one that remembers nothing, so it does not matter whether children are replaced meanwhile.

``make soak`` (or ``SOAK=1``) checks the larger ones too.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial

import pytest
from interleavings import Run, Step, explore

from celery_s3.chords import Chords, Decision, Manifest, Ticket, follow, tree
from celery_s3.errors import BodyNotSent, ServerFault, StoreError
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool

LEASE = 30.0
CLAIM = "base/celery-chords/g/claim"
soak = pytest.mark.skipif("SOAK" not in os.environ, reason="takes minutes: make soak")


@pytest.fixture(autouse=True)
def _small_nodes(monkeypatch):
    monkeypatch.setattr(tree, "FAN_IN", 2)


class StepwiseStore(MemoryStore):
    """DeleteObjects is not atomic: one object a step."""

    def delete_many(self, keys):
        for key in keys:
            self.delete(key)


class Backwards(Pool):
    """Does at last what others do first: what is done at the same time may end in any order."""

    def map(self, fn, items):
        return [fn(item) for item in reversed(list(items))][::-1]

    def run_both(self, beside, here):
        own = here()
        return beside(), own


@dataclass(frozen=True)
class Chord:
    """What happens to one chord.

    Attributes:
        size: members.
        again: the members that are delivered twice.
        crash: a party, and the number of steps that it does.
        fault: a party, and the number of its step that fails; no other does.
        landed: what fails was done, and the answer was lost.
        applied: the task that applies the chord comes again, at any moment: so do all members, if it is undecided.
        stall: at some moment, the lease of whatever claim there is passes.
        other: the second delivery of a member has another payload.
        streamed: the header is generated: its size is told, at any moment, before the last member is sent.
        lost: the member whose task is lost after its part was written: nobody goes up from it but its worker's message.
        one_process: all parties are threads of one process.
        pool: does what is done at the same time.
    """

    size: int
    again: tuple[int, ...] = ()
    crash: tuple[str, int] | None = None
    fault: tuple[str, int] | None = None
    landed: bool = False
    applied: bool = False
    stall: bool = False
    other: bool = False
    streamed: bool = False
    lost: int | None = None
    one_process: bool = False
    pool: type[Pool] = Pool

    def __str__(self) -> str:
        given = (
            f"{one.name}={getattr(self, one.name)}" for one in fields(self) if getattr(self, one.name) != one.default
        )
        return ", ".join(given)


@dataclass
class Sent:
    by: str
    outcome: str
    values: list[str]
    #: how many steps its sender had done
    at: int


@dataclass
class Timer:
    due: float
    by: str
    fn: object = field(repr=False)


class World(Run):
    """A bucket, a clock, timers, and a broker."""

    def __init__(self, chord: Chord) -> None:
        super().__init__()
        self.chord = chord
        self.now = 1_000_000.0
        self.sent: list[Sent] = []
        self.timers: list[Timer] = []
        self.log: list[tuple[str, str, str]] = []
        self.redelivered = False
        self.faulty = False
        self.store = StepwiseStore(clock=lambda: self.now, before=self.request)
        self.processes: dict[str, Chords] = {}
        self._opened = False
        self._shared = self.chords_of("everybody")
        ids = tuple(f"t{index}" for index in range(chord.size))
        self.manifest = Manifest(ids, None, b"{}")
        if chord.streamed:
            self.ticket = self._shared.begin("g", replace(self.manifest, ids=()))
        else:
            self.ticket = self._shared.open("g", self.manifest)
        self._opened = True

    # -- parties

    def chords_of(self, process: str) -> Chords:
        if self.chord.one_process and process != "everybody":
            return self._shared
        pool, clock = self.chord.pool(1), lambda: self.now
        chords = Chords(self.store, pool, "base/celery-chords/", lease=LEASE, clock=clock)
        self.processes[process] = chords
        return chords

    def begin(self) -> None:
        if self.chord.streamed:
            self.start("producer", self.produce)
        for member in range(self.chord.size - self.chord.streamed):
            self.start(f"{member}", partial(self.deliver, f"{member}", member, f"v{member}"))
        for member in self.chord.again:
            payload = f"other{member}" if self.chord.other else f"v{member}"
            self.start(f"{member}'", partial(self.deliver, f"{member}'", member, payload))
        if self.chord.stall:
            self.start("clock", self.stall)
        if self.chord.applied:
            self.start("applier", self.apply_again)

    def apply_again(self) -> None:
        """What the applier of a frozen chord does whose message comes again, and what its members do then."""
        ticket = self.chords_of("applier").open("g", self.manifest)
        for member in range(self.chord.size if ticket is not None else 0):
            self.deliver("applier", member, f"v{member}", ticket)

    def produce(self) -> None:
        """What the applier of a generated header does last: it tells the size, and sends the last member."""
        ticket = self.chords_of("producer").close(self.ticket, self.manifest, numbered=True)
        last = self.chord.size - 1
        self.deliver("producer", last, f"v{last}", ticket)

    def deliver(self, process: str, member: int, payload: str, ticket: Ticket | None = None) -> None:
        """What the backend does with a member's final state."""
        chords = self.chords_of(process)
        ticket = ticket or self.ticket
        try:
            delivery = chords.deliver(ticket, f"t{member}", member, payload.encode())
        except StoreError:  # no result is stored either, and the task comes again
            again = partial(self.deliver, f"{process}*", member, payload, ticket)
            self.timers.append(Timer(self.now, self.current(), again))
            return
        if member == self.chord.lost and not process.endswith("*"):
            # its child dies here, and the report of it comes from the main process: that hands it on
            self.timers.append(Timer(self.now, self.current(), partial(self.mend_from, member)))
            return
        delivery.climb_quietly()
        try:
            complete = delivery.climb()
            if complete is not None and not Decision(chords, delivery.ticket, *complete, self.act).go():
                self.leave(process)
        except (StoreError, BodyNotSent):
            self.timers.append(Timer(self.now + LEASE + 1, self.current(), partial(self.mend_from, member)))

    def leave(self, process: str) -> None:
        """What the mender does about a chord that another one has claimed: somebody is told after a lease."""
        self.timers.append(Timer(self.now + LEASE + 1, self.current(), partial(self.mend, process)))

    def mend(self, process: str) -> None:
        """What a child does that was told."""
        if not follow(self.chords_of(process), self.ticket, self.act):
            self.leave(process)

    def mend_from(self, member: int) -> None:
        """What a child does that was handed a part of one that was lost, or had trouble: it goes up again."""
        chords = self.chords_of("mender")
        tree = chords.tree(self.ticket)
        leaves = tree.climb(0, member, None)
        if leaves is not None and not Decision(chords, self.ticket, tree, leaves, self.act, mending=True).go():
            self.leave("mender")

    def act(self, parts, manifest, perhaps_sent):
        values = [payload.decode() for part in parts for payload in part]
        outcome = "failed" if any(value.startswith("other") for value in values) else "sent"

        def ready():
            self.step(Step("publish"))
            if self.fails() and not self.chord.landed:
                raise BodyNotSent("the broker is away")
            self.sent.append(Sent(self.current(), outcome, values, self.steps[self.current()]))
            return outcome

        return ready

    def stall(self) -> None:
        self.step(Step("time passes", CLAIM))
        self.now += LEASE + 2

    # -- steps

    def request(self, verb: str, key: str) -> None:
        if not self._opened:
            return
        # Who wants to know the time writes an object and reads it: that depends on the clock alone.
        clock = "/now/" in key
        self.step(Step(f"{verb} {key}", CLAIM if clock else key, writes=verb != "GET" and not clock))
        if self.fails():
            self.store.faults.append(Fault(ServerFault("down"), landed=self.chord.landed))

    def fails(self) -> bool:
        """Whether the step that has begun is the one that fails."""
        fails = self.chord.fault == (self.current(), self.steps[self.current()])
        self.faulty = self.faulty or fails
        return fails

    def step(self, step: Step) -> None:
        self.pause(step)
        self.log.append((self.current(), step.name, ""))

    def version(self, object: str) -> object:
        found = self.store._objects.get(object)
        return self.now, found and found.etag

    def crashes(self, party: str) -> bool:
        return self.chord.crash == (party, self.steps[party])

    @property
    def crashed(self) -> bool:
        """Whether the party that is to crash got that far."""
        if self.chord.crash is None:
            return False
        party, steps = self.chord.crash
        return self.steps.get(party) == steps and bool(self.parties[party])

    # -- what follows when nobody has a step left

    def quiet(self) -> None:
        """The earliest timers are due; after the last one, a broker delivers again what was not acknowledged."""
        assert self.phase < 12, "timers for ever"
        alive = [timer for timer in self.timers if not (self.crashed and timer.by == self.chord.crash[0])]
        if alive:
            due = min(timer.due for timer in alive)
            self.now = max(self.now, due)
            ripe = [timer for timer in alive if timer.due <= self.now + 1]
            self.timers = [timer for timer in alive if timer not in ripe]
            for number, timer in enumerate(ripe):
                self.start(f"{timer.by.split('/')[0]}/{self.phase}.{number}", timer.fn)
        elif self.crashed and not self.redelivered:
            self.redelivered = True
            member = int(self.chord.crash[0].strip("'"))
            self.start("redelivered", partial(self.deliver, "redelivered", member, f"v{member}"))

    def fingerprint(self):
        objects = tuple(
            (key, _without_nonce(found.body), found.modified)
            for key, found in sorted(self.store._objects.items())
            if "/now/" not in key
        )
        waiting = {timer.by.split("/")[0] for timer in self.timers}
        memories = tuple(
            (name, str({node: sorted(parts) for node, parts in sorted(memory._nodes.items())}), str(memory._busy))
            for name, memory in ((name, chords._memory.get()) for name, chords in sorted(self.processes.items()))
            if name in waiting
        )
        timers = tuple(sorted((timer.due, timer.by) for timer in self.timers))
        sent = tuple((one.outcome, *one.values) for one in self.sent), bool(self.sent) and self.explained()
        return objects, timers, memories, sent, self.now, self.crashed, self.redelivered, self.faulty, self.phase

    # -- what must hold

    def check(self) -> None:
        story = "\n".join(" ".join(each) for each in self.log)
        assert len({(one.outcome, *one.values) for one in self.sent}) == 1, (
            f"two outcomes or none: {self.sent}\n{story}"
        )
        if len(self.sent) > 1:
            assert self.explained(), f"sent twice: {self.sent}\n{story}"
        assert len(self.sent) < 3

    def explained(self) -> bool:
        """Whether the first sender died, or a sender stalled for its lease, between its claim and its mark."""
        first = self.sent[0]
        if self.crashed and self.chord.crash == (first.by, first.at):
            return True
        # One that stalled before it published may be the second to do so.
        return self.chord.stall and any(self.stalled(one.by) for one in self.sent)

    def stalled(self, sender: str) -> bool:
        """Whether time passed between the claim of a sender and its mark."""
        steps = [(party, name) for party, name, _ in self.log]
        mine = [index for index, (party, name) in enumerate(steps) if party == sender and name.endswith("/claim")]
        published = steps.index((sender, "publish"))
        claimed = max(index for index in mine if index < published)
        marked = min((index for index in mine if index > published), default=len(steps))
        return ("clock", "time passes") in steps and claimed < steps.index(("clock", "time passes")) < marked


def _without_nonce(body: bytes) -> bytes:
    return re.sub(rb'"(nonce|owner)": "[^"]*"', b"", body)


def verify(chord: Chord) -> Counter[str]:
    """Check every run; how many there were, and of what kind."""
    seen: Counter[str] = Counter()
    for world in explore(lambda: World(chord)):
        world.check()
        seen["runs"] += 1
        seen["crashed"] += world.crashed
        seen["faulty"] += world.faulty
        seen["twice"] += len(world.sent) > 1
    assert seen["runs"]
    return seen


def verify_crashes(chord: Chord, parties: Iterable[str] | None = None) -> Counter[str]:
    """The same, with each party dying before each of its steps in turn."""
    seen: Counter[str] = Counter()
    for party in parties or everybody(chord):
        for steps in range(60):
            found = verify(replace(chord, crash=(party, steps)))
            if not found["crashed"]:
                break
            seen += found
    return seen


def verify_faults(chord: Chord, parties: Iterable[str] | None = None) -> Counter[str]:
    """The same, with each step of each party failing in turn, done or not."""
    seen: Counter[str] = Counter()
    for party in parties or everybody(chord):
        for landed in (False, True):
            for step in range(1, 60):
                found = verify(replace(chord, fault=(party, step), landed=landed))
                if not found["faulty"]:
                    break
                seen += found
    return seen


def everybody(chord: Chord) -> list[str]:
    return [*map(str, range(chord.size)), *(f"{member}'" for member in chord.again)]


def stroll(chord: Chord, seed: int) -> bool:
    """One run, in which chance decides who goes on and who crashes where; whether one did."""
    chance = random.Random(seed)
    world = World(replace(chord, crash=(chance.choice(everybody(chord)), chance.randrange(18))))
    try:
        world.begin()
        while enabled := world.enabled():
            world.do(chance.choice(enabled))
        world.check()
        return world.crashed
    finally:
        world.close()


@pytest.mark.parametrize(
    "chord",
    [
        Chord(1),
        Chord(2),
        Chord(3),
        Chord(1, again=(0,)),
        Chord(2, again=(0,)),
        Chord(2, again=(1,)),
        Chord(2, again=(1,), other=True),
        Chord(2, again=(0,), one_process=True),
        Chord(2, again=(0,), pool=Backwards),
        Chord(1, streamed=True),
        Chord(2, streamed=True),
        Chord(2, lost=0),
        Chord(3, lost=2),
        Chord(1, applied=True),
    ],
    ids=str,
)
def test_without_a_crash(chord):
    """Whatever the order of everybody's steps: exactly one send, with the values of one delivery of each member."""
    assert verify(chord)["twice"] == 0


@pytest.mark.parametrize("chord", [Chord(1), Chord(2), Chord(1, again=(0,))], ids=str)
def test_one_crash(chord):
    """Whoever dies wherever: one send, in the end by a redelivery; two only after a death between send and mark."""
    assert verify_crashes(chord)["crashed"]


@pytest.mark.parametrize("chord", [Chord(1), Chord(2)], ids=str)
def test_one_fault(chord):
    """Whatever request fails, done or not, or the broker at the moment of sending: one send, never two."""
    seen = verify_faults(chord)
    assert seen["faulty"]
    assert seen["twice"] == 0


@pytest.mark.parametrize(
    "chord", [Chord(1, stall=True), Chord(2, stall=True), Chord(1, again=(0,), stall=True)], ids=str
)
def test_a_stalled_owner(chord):
    """A lease that passes at any moment: two sends only where that is between the owner's claim and its mark."""
    verify(chord)


@pytest.mark.timeout(7200 if "SOAK" in os.environ else 120)
@pytest.mark.parametrize(
    "chord",
    [
        Chord(4, again=(0,)),
        Chord(4, again=(3,), other=True),
        Chord(4, again=(1,), stall=True),
        Chord(5, again=(2, 4)),
        Chord(5, streamed=True),
    ],
    ids=str,
)
def test_crashes_by_chance(chord):
    """Larger trees and a crash somewhere, in orders picked at random: the same holds."""
    crashed = sum(stroll(chord, seed) for seed in range(20_000 if "SOAK" in os.environ else 400))
    assert crashed


@soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "chord",
    [
        Chord(4),
        Chord(3, again=(0,)),
        Chord(3, again=(2,)),
        Chord(2, again=(0,), stall=True),
        Chord(3, streamed=True),
        Chord(2, applied=True),
    ],
    ids=str,
)
def test_larger_without_a_crash(chord):
    """The same for larger ones, every order of everybody's steps."""
    verify(chord)


@soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("chord", "party"),
    [(chord, party) for chord in (Chord(3), Chord(2, again=(0,))) for party in everybody(chord)],
    ids=str,
)
def test_larger_with_a_fault(chord, party):
    """The same for larger ones, every order of everybody's steps and every step of that party that fails."""
    assert verify_faults(chord, [party])["twice"] == 0


@soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("chord", "party"),
    [
        (chord, party)
        for chord in (Chord(3), Chord(2, again=(0,)), Chord(2, again=(1,), other=True), Chord(4))
        for party in everybody(chord)
    ],
    ids=str,
)
def test_larger_with_a_crash(chord, party):
    """The same for larger ones, every order of everybody's steps and every step at which that party dies."""
    assert verify_crashes(chord, [party])["crashed"]
