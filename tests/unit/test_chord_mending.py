"""When chords are mended without their own tasks, on a bucket in memory, with timers that wait."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from celery.signals import worker_ready
from chord_world import LEASE, Timers, World

from celery_s3.chords.mender import ALL
from celery_s3.chords.mending import HOUR, MemberResults, Mending
from celery_s3.errors import ServerFault, Throttled
from celery_s3.store.memory import Fault


class Party(World):
    """A worker's main process."""

    def __init__(self, native=True):
        super().__init__(2)
        self.timers = Timers()
        self.mending = Mending(
            self.chords,
            None,
            self.mender,
            None,
            lambda: native,
            trusted=False,
            mended="base/celery-chords-repaired",
            kept=15 * 86_400,
            dead=None,
            later=self.timers,
        )


@pytest.fixture
def party():
    party = Party()
    yield party
    party.mending.close()


def test_a_worker_that_starts(party):
    """When the claims of the dead have expired it asks the workers to look at all chords; in an hour again."""
    worker_ready.send(sender="here")
    worker_ready.send(sender="here")
    ((first, look),) = party.timers.entries
    assert 1.1 * LEASE <= first <= 2 * LEASE
    party.mender.hand_on_all = lambda: party.mender.told.append(ALL)
    look()
    assert party.mender.told == [ALL]
    assert HOUR < party.timers.entries[1][0] <= HOUR + 60


def test_a_worker_that_starts_after_another(party):
    """It leaves the hour's look to that one, and comes back when the hour is over, not in a day."""
    party.now = datetime.now(UTC).timestamp() - 3000
    assert party.mending.turn() == 0
    party.mending.look_at_all()
    ((pause, _),) = party.timers.entries
    assert party.mender.told == []
    assert 500 < pause < 700


def test_a_closed_one_hears_of_no_worker(party):
    """What is closed does nothing when a worker starts."""
    party.mending.close()
    worker_ready.send(sender="here")
    assert party.timers.entries == []


def test_no_chords_of_ours():
    """Where `chord_unlock` runs chords, nothing is asked for."""
    party = Party(native=False)
    party.mending.look_at_all()
    party.mending.close()
    assert (party.store.requests, party.mender.told) == ([], [])


def test_one_worker_looks_in_an_hour(party):
    """Of workers that start together one looks; it costs the others a GET."""
    party.now = datetime.now(UTC).timestamp()
    assert party.mending.turn() == 0
    party.store.requests.clear()
    assert 3500 < party.mending.turn() <= HOUR
    assert party.store.requests == [("GET", "base/celery-chords-repaired")]


def test_an_hour_later_another_one_looks(party):
    """What is older than an hour is replaced, by one of those who find it so."""
    party.now = datetime.now(UTC).timestamp() - 3700
    assert party.mending.turn() == 0
    assert party.mending.turn() == 0


def test_a_look_that_fails(party, caplog):
    """Nothing is raised where nobody would see it; a warning says what it was, and the next hour comes."""
    party.store.faults.append(Fault(Throttled("slow"), verb="GET"))
    party.mending.look_at_all()
    assert "Chords could not be looked after" in caplog.text
    assert len(party.timers.entries) == 1


# -- what a member without a part would have delivered


def results(found=None, meta=None):
    whole = SimpleNamespace(about=SimpleNamespace(key="key"))
    store = SimpleNamespace(read=lambda key: found, whole=lambda found: whole)

    def decode(whole):
        if isinstance(meta, Exception):
            raise meta
        return meta

    return MemberResults(store, decode, json.dumps, lambda id: f"key-{id}")


NOW = datetime(2026, 1, 1, tzinfo=UTC)
FOUND = SimpleNamespace(modified=NOW)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_a_final_result_is_a_payload(state):
    """The payload is the one that the member itself would have made."""
    assert results(FOUND, {"status": state, "result": 7})("t0", NOW) == json.dumps(["t0", state, 7]).encode()


@pytest.mark.parametrize("state", ["STARTED", "RETRY", "REVOKED", "PENDING"])
def test_a_state_that_is_not_final(state):
    """Such a task may yet deliver its part itself."""
    assert results(FOUND, {"status": state, "result": 7})("t0", NOW) is None


def test_a_result_of_an_earlier_run():
    """One that is older than the chord is none of it, nor is one that is not there."""
    assert results(FOUND, {"status": "SUCCESS", "result": 7})("t0", NOW.replace(year=2027)) is None
    assert results(None)("t0", NOW) is None


def test_a_result_within_the_second_of_the_chord():
    """A chord is listed in milliseconds, a result answered in whole seconds: it is not older than its own chord."""
    payload = results(FOUND, {"status": "SUCCESS", "result": 7})("t0", NOW.replace(microsecond=999_000))
    assert payload == json.dumps(["t0", "SUCCESS", 7]).encode()


def test_garbage_is_no_result(caplog):
    """An object that cannot be read is warned about, and delivers nothing; a store that fails is raised."""
    assert results(FOUND, ValueError("garbage"))("t0", NOW) is None
    assert "key is no result that can be delivered" in caplog.text
    failing = MemberResults(SimpleNamespace(read=_fail), None, None, str)
    with pytest.raises(ServerFault):
        failing("t0", NOW)


def _fail(key):
    raise ServerFault("down")
