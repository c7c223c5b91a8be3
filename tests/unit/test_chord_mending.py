"""Who mends chords, and when: who waits, a worker that starts; each on a bucket in memory, with timers that wait."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from celery.result import AsyncResult, GroupResult
from celery.signals import worker_ready
from chord_world import LEASE, World

from celery_s3.chords import mending
from celery_s3.chords.mending import DAY, MemberResults, Mending
from celery_s3.errors import ServerFault, Throttled
from celery_s3.store.memory import Fault


class Party(World):
    """A process that mends; ``sent``: what it has sent without a task of the chord's."""

    def __init__(self, native=True):
        super().__init__(2)
        self.sent = []
        self.results = {}
        sender = SimpleNamespace(without_a_task=lambda manifest: self.act)
        final = lambda task_id, since: self.results.get(task_id)  # noqa: E731
        self.mending = Mending(
            self.chords, sender, final, lambda: native, mended="base/celery-chords-repaired", kept=15 * DAY, dead=None
        )

    def act(self, parts, manifest, perhaps_sent):
        values = [payload for part in parts for payload in part]
        return lambda: self.sent.append(values) or "sent"

    def stick(self):
        """Both members have a result, and no part; the chord was quiet for long."""
        self.results = {"t0": b"one", "t1": b"two"}
        self.now += 10 * LEASE


@pytest.fixture
def party(monkeypatch):
    monkeypatch.setattr(mending, "prefork_parent", lambda: False)
    return Party()


def behind_a_chord():
    header = GroupResult("g", [AsyncResult("t0"), AsyncResult("t1")])
    return AsyncResult("body", parent=header)


# -- who waits


def test_waiting_for_a_plain_result(party):
    """Nothing but what the caller wanted is called."""
    assert party.mending.watching(AsyncResult("plain"), None) is None
    assert party.mending.watching(AsyncResult("plain"), party.stick) == party.stick


def test_waiting_for_a_body(party, monkeypatch):
    """After a lease, and twice that time later, a look begins in the background; the caller's is called too."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(mending.time, "monotonic", lambda: clock.now)
    called = []
    watch = party.mending.watching(behind_a_chord(), lambda: called.append(clock.now))
    for clock.now in (1.0, LEASE + 1.0, LEASE + 2.0, 3 * LEASE + 2.0):
        watch()
    assert called == [1.0, LEASE + 1.0, LEASE + 2.0, 3 * LEASE + 2.0]
    assert [seconds for seconds, _ in party.timers] == [0, 0]
    party.stick()
    party.timers[0][1]()
    assert party.sent == [[b"one", b"two"]]


def test_a_look_that_fails(party, monkeypatch, caplog):
    """In the background nothing is raised; a warning says what it was."""
    party.store.faults.append(Fault(Throttled("slow"), verb="LIST"))
    monkeypatch.setattr(mending.time, "monotonic", iter((0.0, LEASE + 1.0, LEASE + 1.0)).__next__)
    party.mending.watching(behind_a_chord(), None)()
    party.timers[0][1]()
    assert "Chords could not be looked after" in caplog.text


# -- a worker that starts


def test_a_worker_that_starts(party):
    """It mends when the claims of the dead have expired, and about a day later again."""
    party.mending.start_with_worker()
    worker_ready.send(sender="here")
    worker_ready.send(sender="here")
    ((first, mend),) = party.timers
    assert 1.1 * LEASE <= first <= 2 * LEASE
    party.stick()
    mend()
    assert party.sent == [[b"one", b"two"]]
    assert 0.9 * DAY <= party.timers[1][0] <= 1.1 * DAY


def test_a_closed_one_hears_of_no_worker(party):
    """What is closed does nothing when a worker starts."""
    party.mending.start_with_worker()
    party.mending.close()
    worker_ready.send(sender="here")
    assert party.timers == []


def test_the_main_process_of_a_prefork_worker(party, monkeypatch):
    """It leaves that to its first child."""
    monkeypatch.setattr(mending, "prefork_parent", lambda: True)
    party.mending.worker_started()
    assert party.timers == []


def test_no_chords_of_ours(monkeypatch):
    """Where `chord_unlock` runs chords, nothing is asked for."""
    party = Party(native=False)
    party.mending.mend_all()
    assert party.store.requests == []


def test_one_worker_looks_in_an_hour(party):
    """Of workers that start together one looks; it costs the others a GET."""
    party.now = datetime.now(UTC).timestamp()
    assert party.mending.first_to_look()
    party.store.requests.clear()
    assert not party.mending.first_to_look()
    assert party.store.requests == [("GET", "base/celery-chords-repaired")]


def test_an_hour_later_another_one_looks(party):
    """What is older than an hour is replaced, by one of those who find it so."""
    party.now = datetime.now(UTC).timestamp() - 3700
    assert party.mending.first_to_look()
    assert party.mending.first_to_look()


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
