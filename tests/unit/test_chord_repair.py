"""Finding and mending chords over the in-memory store: every way to be stuck, beside others, and what is cleaned up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.chords import Chords, Decision, Manifest
from celery_s3.chords.repair import KEPT, Repair
from celery_s3.chords.survey import Survey
from celery_s3.chords.tree import FAN_IN
from celery_s3.errors import CeleryS3Error, NotRepaired, Throttled
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool

LEASE = 30


class Died(BaseException):
    """A party stops here for ever."""


class World:
    """Chords in a bucket with a clock of its own; ``before`` may be set to run something before each request."""

    def __init__(self):
        self.now = 1_000_000.0
        self.store = MemoryStore(clock=lambda: self.now, before=lambda verb, key: self.before(verb, key))
        self.sent = []
        self.results = {}

    def before(self, verb, key):
        pass

    def chords(self):
        """As a process of its own sees them: it remembers nothing."""
        return Chords(self.store, Pool(1), "base/celery-chords/", lease=LEASE)

    def repair(self, owner=None):
        survey = Survey(self.chords(), self.final, lambda: datetime.fromtimestamp(self.now, UTC))
        return Repair(survey, owner or (lambda manifest: self.act))

    def final(self, task_id, since):
        payload, at = self.results.get(task_id, (None, 0.0))
        return payload if at >= since.timestamp() else None

    def act(self, parts, manifest, perhaps_sent):
        values = [payload.decode() for part in parts for payload in part]
        return lambda: "sent" if perhaps_sent and values in self.sent else self.sent.append(values) or "sent"

    def open(self, size, group="g", prefix="t"):
        ids = tuple(f"{prefix}{index}" for index in range(size))
        return self.chords().open(group, Manifest(ids, None, b"{}"))

    def deliver(self, ticket, index, value=None):
        """A member writes its part, and dies."""
        return self.chords().deliver(ticket, f"t{index}", index, (value or f"v{index}").encode())

    def finish(self, ticket, index, act=None):
        chords = self.chords()
        complete = chords.deliver(ticket, f"t{index}", index, f"v{index}".encode()).climb()
        if complete:
            Decision(chords, ticket, *complete, act or self.act).go()

    def die(self, *_):
        raise Died

    def states(self, *groups, settled=False):
        return {chord.group: chord.state for chord in self.repair().survey.chords(groups, settled=settled)}

    def mend(self):
        """What the command does: mend what needs it; the states afterwards."""
        repair = self.repair()
        needy = [chord for chord in repair.survey.chords() if chord.state in ("stuck", "complete")]
        after = [repair.repair(chord) for chord in needy]
        return {chord.group: chord.state for chord in after if chord}

    def names(self):
        return [entry.key for entry in self.store.list("")]


@pytest.fixture
def world():
    return World()


def values(size):
    return [f"v{index}" for index in range(size)]


# -- what is found


def test_a_running_chord(world):
    """A chord in flight is found with its size, its members done, and its age on the server's clock."""
    ticket = world.open(5)
    world.now += 20
    for index in (0, 3):
        world.deliver(ticket, index)
    world.now += 100
    (chord,) = world.repair().survey.chords()
    assert (chord.group, chord.state) == ("g", "running")
    assert (chord.done, len(chord.manifest.ids), chord.age, chord.quiet) == (2, 5, 120, 100)
    assert chord.started == datetime.fromtimestamp(1_000_000, UTC)
    assert chord.ticket == replace(ticket, prefix="")


def test_complete_is_stuck_after_a_lease(world):
    """A chord whose parts are all there is complete; where nobody goes on for a lease it is stuck, and says why."""
    ticket = world.open(2)
    for index in range(2):
        world.deliver(ticket, index)
    assert world.states() == {"g": "complete"}
    world.now += LEASE + 1
    (chord,) = world.repair().survey.chords()
    assert (chord.state, chord.reason) == ("stuck", "all parts are there, and nobody went on")


def test_a_claim_is_stuck_after_its_lease(world):
    """A chord that somebody is sending is claimed; once the lease is over it is stuck."""
    ticket = world.open(1)
    with pytest.raises(Died):
        world.finish(ticket, 0, world.die)
    assert world.states() == {"g": "claimed"}
    world.now += LEASE + 1
    assert world.states() == {"g": "stuck"}


@pytest.mark.parametrize("outcome", ["sent", "failed"])
def test_tombstones_are_hidden(world, outcome):
    """A decided chord is told on request only, with all its members done; it costs no GET where it is hidden."""
    ticket = world.open(3)
    world.now += 5
    for index in range(3):
        world.finish(ticket, index, lambda *_: lambda: outcome)
    before = len(world.store.requests)
    assert world.states() == {}
    assert [verb for verb, _ in world.store.requests[before:]] == ["LIST"]
    assert world.states(settled=True) == {"g": outcome}
    (chord,) = world.repair().survey.chords(settled=True)
    assert chord.done == 3
    assert chord.decided


def test_choosing_chords(world):
    """Only the chords asked for are listed, not those whose id begins alike."""
    for group in ("a", "ab", "b/c"):
        world.open(1, group)
    assert set(world.states()) == {"a", "ab", "b/c"}
    assert set(world.states("a", "b/c")) == {"a", "b/c"}
    assert world.states("nobody") == {}


def test_result_without_part(world):
    """A member that has a result and no part is stuck once the chord has been quiet for a lease, not before."""
    ticket = world.open(3)
    world.deliver(ticket, 0)
    world.results["t2"] = (b"v2", world.now)
    assert world.states() == {"g": "running"}
    world.now += LEASE + 1
    (chord,) = world.repair().survey.chords()
    assert (chord.state, chord.lost, chord.reason) == ("stuck", (2,), "1 members have a result and no part")


def test_part_that_comes_during_the_look(world):
    """A member that is just finishing has its part before its result: it is not taken for lost."""
    ticket = world.open(2)
    world.deliver(ticket, 0)
    world.now += LEASE + 1

    def final(task_id, since):
        world.deliver(ticket, 1)
        return b"v1"

    world.final = final
    assert world.states() == {"g": "running"}


def test_a_result_older_than_the_chord_is_not_taken(world):
    """A result that a member's task id had before its chord was applied is none of the chord's."""
    world.results["t0"] = (b"old", world.now)
    world.now += 100
    world.open(2)
    world.now += LEASE + 1
    assert world.states() == {"g": "running"}
    assert world.mend() == {}


def test_added_tasks_are_waited_for(world):
    """A chord whose members are all done, but not a task that one of them added, is running, however long."""
    ticket = world.open(2)
    world.deliver(ticket, 0)
    adder = ticket.adding("t1", 1, ["extra"])
    world.chords().deliver(adder, "t1", 1, b"v1")
    world.now += LEASE + 1
    assert world.states() == {"g": "running"}
    world.chords().deliver(adder, "extra", None, b"more")
    world.now += LEASE + 1
    assert world.mend() == {"g": "sent"}
    assert world.sent == [["v0", "v1", "more"]]


def test_garbage_is_passed_over(world, caplog):
    """Keys that no chord has made, and a manifest that cannot be read, hide no other chord."""
    world.open(1)
    for key in ("stray", "x/manifest", "y/what/ever", "y/z", "g/0/1/2/3", "g/nothing"):
        world.store.put(f"base/celery-chords/{key}", b"garbage")
    assert world.states() == {"g": "running"}
    assert "x/manifest is no manifest" in caplog.text
    world.repair().run()
    assert world.states() == {"g": "running"}


@given(
    st.lists(st.text(min_size=1, max_size=8).filter(lambda id: id.isprintable()), min_size=1, max_size=4, unique=True)
)
def test_group_ids_round_trip(ids):
    """Whatever the group ids, a listing gives each chord back under its own."""
    world = World()
    for id in ids:
        world.deliver(world.open(2, id), 1)
    assert world.states() == dict.fromkeys(ids, "running")
    assert world.states(ids[0]) == {ids[0]: "running"}


# -- mending


@pytest.mark.parametrize("size", [1, 2, FAN_IN, FAN_IN + 1, 3 * FAN_IN, FAN_IN**2 + 1])
def test_parts_without_follow_up(world, size):
    """All members wrote their part and died: the summaries are made up for and the body is sent, in order."""
    ticket = world.open(size)
    for index in range(size):
        world.deliver(ticket, index)
    world.now += LEASE + 1
    assert world.states() == {"g": "stuck"}
    assert world.mend() == {"g": "sent"}
    assert world.sent == [values(size)]
    assert world.states() == {}
    assert [key for key in world.names() if "/g/" in key] == [
        "base/celery-chords/g/claim",
        "base/celery-chords/g/manifest",
    ]


@pytest.mark.parametrize("acted", [False, True])
def test_owner_that_died(world, acted):
    """The claim of a dead owner is taken over; that it may have sent already is passed on."""
    ticket = world.open(2)
    world.finish(ticket, 0)
    if acted:
        with pytest.raises(Died):
            world.finish(ticket, 1, world.die)
    else:
        world.deliver(ticket, 1)
        assert world.chords().claim("g").acquire() is None
    told = []

    def act(parts, manifest, perhaps_sent):
        return lambda: told.append(perhaps_sent) or "sent"

    repair = world.repair(lambda manifest: act)
    world.now += LEASE + 1
    (chord,) = repair.survey.chords()
    assert repair.repair(chord).state == "sent"
    assert told == [True]


@pytest.mark.parametrize("size", [2, FAN_IN + 2])
def test_lost_members(world, size):
    """Members that have only a result deliver it, and the chord goes on."""
    ticket = world.open(size)
    for index in range(size - 2):
        world.deliver(ticket, index)
    for index in (size - 2, size - 1):
        world.results[f"t{index}"] = (f"v{index}".encode(), world.now)
    world.now += LEASE + 1
    assert world.mend() == {"g": "sent"}
    assert world.sent == [values(size)]


def test_lost_member_of_a_running_chord(world):
    """What is lost is delivered although others are still running; they finish the chord."""
    ticket = world.open(3)
    world.results["t0"] = (b"v0", world.now)
    world.now += LEASE + 1
    assert world.mend() == {"g": "running"}
    for index in (1, 2):
        world.finish(ticket, index)
    assert world.sent == [values(3)]


def test_nothing_is_done_twice(world):
    """A chord that is decided, or was by the time it is mended, is never sent again."""
    ticket = world.open(2)
    world.deliver(ticket, 0)
    world.deliver(ticket, 1)
    (complete,) = world.repair().survey.chords()
    world.finish(ticket, 1)
    assert world.repair().repair(complete).state == "sent"
    assert world.repair().repair(world.repair().repair(complete)).state == "sent"
    assert world.sent == [values(2)]


def test_a_live_claim_is_left_alone(world):
    """Mending a chord that somebody is sending sends nothing."""
    ticket = world.open(1)
    world.deliver(ticket, 0)
    (chord,) = world.repair().survey.chords()
    claim = world.chords().claim("g")
    assert claim.acquire() is None
    assert world.repair().repair(chord).state == "claimed"
    assert world.sent == []
    assert claim.mark("sent")
    assert world.repair().repair(chord).state == "sent"
    assert world.sent == []


def test_who_cannot_send_does_not_claim(world):
    """Where the body cannot be sent from here, nothing is claimed: somebody else may mend the chord at once."""
    ticket = world.open(1)
    world.deliver(ticket, 0)
    world.now += LEASE + 1

    def owner(manifest):
        raise NotRepaired("no broker")

    (chord,) = world.repair().survey.chords()
    with pytest.raises(CeleryS3Error, match="no broker"):
        world.repair(owner).repair(chord)
    world.repair(owner).run()
    assert world.mend() == {"g": "sent"}


@pytest.mark.parametrize("size", [1, 3, FAN_IN + 1])
def test_a_crash_at_any_request(size):
    """Whichever request a worker dies before, the chord is sent once: by the others, or by the repair."""
    request, crashed = 0, True
    while crashed:
        world, crashed = World(), False
        ticket = world.open(size)
        for index in range(size - 1):
            world.deliver(ticket, index)
        countdown = iter(range(request, -1, -1))

        def before(verb, key, countdown=countdown):
            if next(countdown, None) == 0:
                raise Died

        world.before = before
        try:
            for index in reversed(range(size)):
                world.finish(ticket, index)
        except Died:
            crashed = True
        world.before = lambda *_: None
        world.now += LEASE + 1
        world.results[f"t{size - 1}"] = (f"v{size - 1}".encode(), world.now)
        world.repair().run()
        assert world.sent == [values(size)]
        assert world.states(settled=True) == {"g": "sent"}
        request += 1
    assert request > 5


def beside(prepare, other):
    """Run the repair as often as it has requests, each time with ``other`` before another one of them."""
    at, done = 0, False
    while not done:
        world = World()
        ticket = prepare(world)
        countdown = iter(range(at, -1, -1))

        def before(verb, key, world=world, ticket=ticket, countdown=countdown):
            if next(countdown, None) == 0:
                world.before = lambda *_: None
                other(world, ticket)

        world.before = before
        world.repair().run()
        done = next(countdown, None) is not None
        world.before = lambda *_: None
        yield world, ticket
        at += 1
    assert at > 5


@pytest.mark.parametrize("size", [2, FAN_IN + 1])
@pytest.mark.parametrize("claimed", [False, True])
def test_two_repairs_at_once(size, claimed):
    """At whichever request another repair comes along, the body is sent once, and nobody fails."""

    def prepare(world):
        ticket = world.open(size)
        for index in range(size - 1):
            world.deliver(ticket, index)
        world.results[f"t{size - 1}"] = (f"v{size - 1}".encode(), world.now)
        if claimed:
            world.deliver(ticket, size - 1)
            world.chords().claim("g").acquire()
        world.now += LEASE + 1

    for world, _ in beside(prepare, lambda world, _: world.repair().run()):
        assert world.sent == [values(size)]
        assert world.states(settled=True) == {"g": "sent"}


@pytest.mark.parametrize("size", [2, FAN_IN + 1])
def test_beside_a_worker(size):
    """At whichever request of a repair the last member finishes, with a member lost, the body is sent once."""

    def prepare(world):
        ticket = world.open(size)
        for index in range(1, size - 1):
            world.deliver(ticket, index)
        world.results["t0"] = (b"v0", world.now)
        world.now += LEASE + 1
        return ticket

    for world, ticket in beside(prepare, lambda world, ticket: world.finish(ticket, size - 1)):
        world.finish(ticket, size - 1)
        world.now += LEASE + 1
        world.repair().run()
        assert world.sent == [values(size)]


def test_an_error_leaves_the_rest(world, caplog):
    """A chord that cannot be mended is logged; the others are mended, and it is at the next time."""
    for group in ("a", "b", "c"):
        world.deliver(world.open(1, group), 0)
    world.now += LEASE + 1
    world.store.faults.append(Fault(Throttled("slow down"), "GET", "base/celery-chords/b/manifest"))
    world.repair().run()
    assert len(world.sent) == 2
    assert "Chord b could not be looked after" in caplog.text
    world.repair().run()
    assert len(world.sent) == 3


# -- cleaning up


def decide(world, group="g", size=2):
    ticket = world.open(size, group)
    world.now += 3
    for index in range(size):
        world.finish(ticket, index)
    return ticket


def test_tombstones_go_after_their_time(world):
    """Manifest and claim stay as long as a broker may redeliver, and are removed after that."""
    decide(world)
    tombstone = world.names()
    assert len(tombstone) == 2
    world.now += KEPT.total_seconds() - 1
    world.repair().run()
    assert world.names() == tombstone
    world.now += 2
    world.repair().run()
    assert world.names() == []


def test_tombstones_of_quick_chords_go_too(world):
    """Also those of a chord that was applied and decided within the same second of the server's clock."""
    ticket = world.open(1)
    world.finish(ticket, 0)
    world.now += KEPT.total_seconds() + 1
    world.repair().run()
    assert world.names() == []


def test_parts_that_outlived_their_chord(world):
    """Parts of a decided chord are removed at once: a late duplicate's, or an owner's that died after its mark."""
    ticket = decide(world)
    tombstone = world.names()
    world.deliver(ticket, 1)
    assert len(world.names()) == 3
    world.repair().run()
    assert world.names() == tombstone
    assert world.sent == [values(2)]


def test_keys_without_a_manifest(world):
    """What is left of a chord whose manifest is gone goes when it is old, and is never sent."""
    ticket = world.open(2)
    world.store.delete("base/celery-chords/g/manifest")
    for index in range(2):
        world.deliver(ticket, index)
    world.now += LEASE + 1
    assert world.states(settled=True) == {}
    world.repair().run()
    assert len(world.names()) == 2
    world.now += KEPT.total_seconds()
    world.repair().run()
    assert (world.names(), world.sent) == ([], [])


def test_chords_in_flight_stay(world):
    """However old a chord is, while it is undecided nothing of it is removed."""
    ticket = world.open(3)
    world.finish(ticket, 0)
    world.now += 10 * KEPT.total_seconds()
    before = world.names()
    world.repair().run()
    assert world.names() == before
    for index in (1, 2):
        world.finish(ticket, index)
    assert world.sent == [values(3)]


def test_many_tombstones(world):
    """More tombstones than are removed at a time: all go, in few requests."""
    for number in range(1200):
        decide(world, f"g{number}", 1)
    world.now += timedelta(days=16).total_seconds()
    before = len(world.store.requests)
    world.repair().run()
    assert world.names() == []
    verbs = [verb for verb, _ in world.store.requests[before:]]
    assert verbs.count("DELETE_OBJECTS") == 6
    assert verbs.count("GET") == 0
