"""What chords leave behind, and when it goes: tombstones, and chords that will never end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from test_chord_repair import World

from celery_s3.chords.repair import Repair
from celery_s3.chords.survey import Survey

DAY = 86_400


class Remains(World):
    """Chords, and what may be deleted of them."""

    def repair(self, owner=None, kept=15, dead=30):
        survey = Survey(self.chords(), self.final, lambda: datetime.fromtimestamp(self.now, UTC))
        dead = None if dead is None else timedelta(days=dead)
        return Repair(survey, owner or (lambda manifest: self.act), kept=timedelta(days=kept), dead=dead)

    def remains(self, **terms):
        return [
            [entry.key.removeprefix("base/celery-chords/") for entry in part] for part in self.repair(**terms).remains()
        ]


@pytest.fixture
def world():
    return Remains()


def test_tombstones(world):
    """A decided chord's keys go after the time they are kept for, the manifest first; nothing before."""
    world.finish(world.open(1), 0)
    world.now += 20 * DAY
    assert world.remains(kept=20) == []
    assert world.remains(kept=19) == [["g/manifest"], ["g/claim"]]


def test_chords_that_will_never_end(world):
    """A chord whose members never came goes when nothing was heard of it for that long; never, where none is set."""
    ticket = world.open(3)
    world.now += 20 * DAY
    world.deliver(ticket, 0)
    world.now += 29 * DAY
    assert world.remains() == []
    world.now += 2 * DAY
    assert world.remains() == [["g/manifest"], ["g/0/0"]]
    assert world.remains(dead=None) == []


def test_what_can_be_repaired_stays(world):
    """A chord that only needs somebody to go on is not given up, however old; a repair ends it."""
    for group in ("complete", "claimed", "lost"):
        ticket = world.open(2, group)
        world.deliver(ticket, 0)
        if group == "lost":
            world.results["t1"] = (b"v1", world.now)
        else:
            world.deliver(ticket, 1)
        if group == "claimed":
            world.chords().claim(group).acquire()
    world.now += 999 * DAY
    assert world.remains() == []
    assert world.sent == []
    world.repair().run()
    assert world.sent == [["v0", "v1"]] * 3


def test_a_late_member(world):
    """A member that comes between the listing and the deletion keeps its chord."""
    ticket = world.open(2)
    world.now += 31 * DAY
    looks = []

    def before(verb, key):
        if verb == "LIST":
            looks.append(key)
            if len(looks) == 2:
                world.deliver(ticket, 0)

    world.before = before
    assert world.remains() == []
    world.finish(ticket, 1)
    assert world.sent == [["v0", "v1"]]


def test_applied_again(world):
    """A frozen chord whose tombstone is gone and that is applied again is a chord like any other."""
    world.finish(world.open(1), 0)
    world.now += 31 * DAY
    assert world.open(1) is None
    world.repair().run()
    world.finish(world.open(1), 0)
    assert world.sent == [["v0"]] * 2


def test_nothing_is_deleted_by_looking(world):
    """Who only asks what remains changes nothing, and mends nothing."""
    ticket = world.open(2)
    for index in range(2):
        world.deliver(ticket, index)
    world.now += DAY
    before = world.names()
    assert world.remains() == []
    assert (world.names(), world.sent) == (before, [])


def test_what_is_somebody_elses(world):
    """Keys that no chord makes stay, also in its folder; without a manifest, so does all that lies beside them."""
    theirs = [
        f"base/celery-chords/{name}" for name in ("2024/01/report.csv", "a/7/b.txt", "a/07/1/2", "a/0/claim", "g/x/y")
    ]
    for key in theirs:
        world.store.put(key, b"notes")
    world.finish(world.open(1), 0)
    world.now += 999 * DAY
    assert world.remains() == [["g/manifest"], ["g/claim"]]
    world.repair().run()
    assert world.names() == sorted(theirs)


def test_remains_without_a_manifest(world):
    """What a cleanup that died has left is removed by a later one: every name that a chord makes."""
    for name in ("claim", "0/31", "1/0", "added/some%2Fid", "now/1f"):
        world.store.put(f"base/celery-chords/g/{name}", b"rest")
    world.now += 20 * DAY
    world.repair().run()
    assert world.names() == []


def test_applied_again_during_the_cleanup(world):
    """A frozen chord that is applied again while its tombstone is being deleted keeps its new manifest."""
    world.finish(world.open(1), 0)
    world.now += 31 * DAY

    def before(verb, key):
        if (verb, key) == ("DELETE_OBJECTS", "base/celery-chords/g/claim"):
            world.before = lambda verb, key: None
            world.ticket = world.open(1)

    world.before = before
    world.repair().run()
    assert world.states() == {"g": "running"}
    world.finish(world.ticket, 0)
    assert world.sent == [["v0"]] * 2


def test_a_manifest_that_cannot_be_read(world):
    """What is no manifest may be somebody else's: it stays."""
    world.store.put("base/celery-chords/theirs/manifest", b"notes")
    world.store.put("base/celery-chords/theirs/0/0/0", b"notes")
    world.now += 999 * DAY
    assert world.remains() == []
