"""What a worker does for the members of a chord, without Celery: deliver, store, go up; whatever fails in between."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from chord_world import LEASE, Host, World

from celery_s3.chords import members
from celery_s3.chords.members import Members
from celery_s3.chords.mender import BY_HAND, MARK
from celery_s3.chords.ticket import TICKET, Ticket
from celery_s3.errors import Garbled, ObjectMissing, ResultNotStored, ServerFault
from celery_s3.store.memory import Fault


class Sender:
    """Notes what it is asked to decide, and what it is told to give up."""

    def __init__(self, host):
        self.host = host
        self.sent = []
        self.given_up = []

    def decide(self, body, parts, manifest, perhaps_sent, look=False):
        values = [self.host.decode(payload)[2] for part in parts for payload in part]
        return lambda: self.sent.append(values) or "sent"

    def give_up(self, body, exc):
        self.given_up.append(exc)


class Crew(World):
    """The members of a chord and who works for them."""

    def __init__(self, size=2, pool=1):
        super().__init__(size, pool)
        host = Host()
        self.sender = Sender(host)
        self.members = Members(host, self.chords, self.sender, self.mender)
        self.stored = []

    def record(self, number, value, state="SUCCESS"):
        def store():
            self.stored.append((f"t{number}", self.parts()))
            return value

        with self.members.reporting():
            return self.members.store(store, f"t{number}", value, state, self.request(number))

    def finish(self, number, value):
        self.record(number, value)
        self.members.returned(self.request(number), value, "SUCCESS")


@pytest.fixture
def crew():
    return Crew()


@pytest.fixture
def main_process(monkeypatch):
    monkeypatch.setattr(members, "prefork_parent", lambda: True)


def test_the_part_is_durable_before_the_final_state(crew):
    """A member's part is there when its state is stored: Celery does not run a task again whose SUCCESS stands."""
    assert crew.record(1, "value") == "value"
    assert crew.stored == [("t1", [1])]


@pytest.mark.parametrize("state", ["STARTED", "RETRY", "PROGRESS"])
def test_other_states_are_no_part(crew, state):
    """What is not final is stored, and nothing of it is delivered."""
    crew.record(0, "value", state)
    assert crew.stored == [("t0", [])]


@pytest.mark.parametrize("chord", [None, {}, {"options": {}}, {"options": {TICKET: None}}])
def test_tasks_without_a_chord_of_ours(crew, chord):
    """A task that is no member, or one of a chord that `chord_unlock` runs, costs no request."""
    request = SimpleNamespace(id="alone", chord=chord)
    assert crew.members.store(lambda: "stored", "alone", 1, "SUCCESS", request) == "stored"
    crew.members.returned(request, 1, "SUCCESS")
    assert crew.store.requests == []


@pytest.mark.parametrize("pool", [1, 4])
def test_the_body_is_sent_once_with_all_values_in_order(pool):
    """In any order, twice or more: one decision, the header's order, one part a member."""
    crew = Crew(3, pool)
    for number in (2, 0, 1, 0, 2):
        crew.finish(number, f"v{number}")
    assert crew.sender.sent == [["v0", "v1", "v2"]]


def test_a_part_is_delivered_once_for_both_hooks(crew):
    """What was delivered while the result was stored is not delivered again when Celery returns the part."""
    crew.finish(0, "value")
    assert [key for verb, key in crew.store.requests if verb == "PUT"] == ["base/celery-chords/g/0/0"]


def test_a_part_that_was_not_stored_before(crew):
    """Celery returns parts of tasks whose result it does not store (`ignore_result`): they are delivered then."""
    crew.members.returned(crew.request(0), "value", "SUCCESS")
    assert crew.parts() == [0]


def test_threads_do_not_mix_their_members(crew):
    """A part that another thread has just delivered is not taken for one's own."""
    thread = threading.Thread(target=crew.record, args=(0, "first"))
    thread.start()
    thread.join()
    crew.members.returned(crew.request(1), "second", "SUCCESS")
    assert crew.sender.sent == [["first", "second"]]


def test_no_part_no_result(crew):
    """Where the part cannot be stored, the result is not either: the task is not taken for finished."""
    crew.store.faults.append(Fault(ServerFault("down"), times=-1))
    with pytest.raises(ResultNotStored, match="SUCCESS of task t0 was not delivered to its chord g") as caught:
        crew.record(0, "value")
    assert (caught.value.task_id, caught.value.state) == ("t0", "SUCCESS")
    assert crew.stored == []


def test_a_part_whose_result_cannot_be_stored(crew):
    """Celery does not return the part then, which may have been the last: after a lease a worker is told."""
    crew.finish(0, "first")

    def fail():
        raise ResultNotStored("no")

    with pytest.raises(ResultNotStored), crew.members.reporting():
        crew.members.store(fail, "t1", "last", "SUCCESS", crew.request(1))
    ((seconds, look),) = crew.mender.timers.entries
    assert (seconds, crew.sender.sent) == (LEASE + 1, [])
    look()
    ((mark, _, options),) = crew.mender.told
    assert (mark, options["chord"]) == ({"tries": 1, "member": ""}, crew.request(1).chord)


def test_a_chord_that_cannot_be_decided(crew):
    """Where the store fails on the way, a worker is told: the part is durable."""
    crew.finish(0, "first")
    crew.store.faults.append(Fault(ServerFault("down"), key="base/celery-chords/g/claim", times=-1))
    crew.finish(1, "last")
    crew.mender.timers.flush()
    assert [mark for mark, _, _ in crew.mender.told] == [{"tries": 1, "member": ""}]


def test_the_claim_of_another(crew):
    """Its owner may have died: it is looked at after a lease, and where that has sent meanwhile nobody is told."""
    claim = crew.chords.claim("g")
    assert claim.acquire() is None
    crew.finish(0, "first")
    crew.finish(1, "last")
    ((_, look),) = crew.mender.timers.entries
    look()
    assert len(crew.mender.told) == 1
    claim.mark("sent")
    look()
    assert len(crew.mender.told) == 1


def test_a_process_that_ends(crew):
    """It looks before it does: a worker is told of what is undecided, for the time when the lease is over."""
    assert crew.chords.claim("g").acquire() is None
    crew.finish(0, "first")
    crew.finish(1, "last")
    crew.mender._process_ends()
    ((_, seconds, _),) = crew.mender.told
    assert LEASE - 1 < seconds <= LEASE + 1


def test_the_main_process_joins_nothing(crew, main_process):
    """It delivers a lost member's part; where that completes a node, it lets a child of some pool go on."""
    for number, value in enumerate(("first", "last")):
        crew.record(number, value, "FAILURE")
        assert crew.mender.told == []
        crew.members.returned(crew.request(number), value, "FAILURE")
    assert (crew.sender.sent, crew.parts()) == ([], [0, 1])
    assert [mark for mark, _, _ in crew.mender.told] == [{"tries": 1, "member": ""}]


def test_a_member_that_tells_nothing(crew):
    """Celery tells no backend that a task was ignored: it is watched, and a worker told once it is finished by hand."""
    request = crew.request(0)
    state = ["PENDING"]
    crew.mender._state = lambda id: state[0]
    crew.mender._task_ended(task=SimpleNamespace(request=request), state="SUCCESS")
    assert crew.mender.timers.entries == []
    crew.mender._task_ended(task=SimpleNamespace(request=request), state="IGNORED")
    for _ in range(3):
        ((seconds, _),) = crew.mender.timers.entries
        assert seconds == BY_HAND
        look, crew.mender.timers.entries = crew.mender.timers.entries[0][1], []
        crew.now += BY_HAND
        look()
        if crew.mender.told:
            break
        state[0] = "SUCCESS"
    ((mark, _, _),) = crew.mender.told
    assert mark["member"] == "t0"


@pytest.mark.parametrize("state", ["FAILURE", "SUCCESS"])
def test_a_message_that_mends(crew, state):
    """It has the chord beside it and is none of its members; where its process is lost, it is sent again later."""
    request = crew.request(0)
    request.headers = {MARK: {"tries": 3, "member": ""}}
    crew.members.store(lambda: None, "mend", None, state, request)
    crew.members.returned(request, None, state)
    assert crew.parts() == []
    assert len(crew.mender.timers.entries) == (state == "FAILURE")


def test_reading_ahead_does_not_lose_the_own_part():
    """Another's part cannot be read while the own one is stored: the own one is delivered, and the body sent."""
    crew = Crew(3)
    for number in (0, 1):
        crew.finish(number, f"v{number}")
    crew.members._chords._memory.drop()
    crew.finish(0, "v0")  # known again: a quarter of the node
    crew.store.faults.append(Fault(ServerFault("down"), "GET", "base/celery-chords/g/0/1", times=1))
    assert crew.record(2, "v2") == "v2"
    crew.members.returned(crew.request(2), "v2", "SUCCESS")
    assert crew.sender.sent == [["v0", "v1", "v2"]]


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_what_a_task_says_of_itself_is_no_part(crew, state):
    """`update_state` in a final state is stored, as with Redis; the body gets what the worker reports."""
    crew.members.store(lambda: crew.stored.append("by hand"), "t0", {"progress": 100}, state, crew.request(0))
    assert (crew.stored, crew.parts()) == (["by hand"], [])
    crew.finish(0, 42)
    crew.finish(1, 1)
    assert crew.sender.sent == [[42, 1]]


def test_a_time_limit_during_the_join(crew, monkeypatch):
    """The soft limit of the last member strikes while the body is prepared: that is no reason to fail the chord."""
    decide, struck = crew.sender.decide, []

    def strike(*args, **more):
        if not struck:
            struck.append(True)
            raise SoftTimeLimitExceeded
        return decide(*args, **more)

    monkeypatch.setattr(crew.sender, "decide", strike)
    crew.finish(0, "first")
    crew.finish(1, "last")
    assert (struck, crew.sender.sent, crew.sender.given_up) == ([True], [["first", "last"]], [])


@pytest.mark.parametrize("where", ["climbing", "storing"])
def test_a_time_limit_after_the_result_is_stored(crew, monkeypatch, where):
    """It comes too late: the task has succeeded, and its worker hears nothing else."""
    crew = Crew(2, pool=4)
    crew.finish(0, "first")

    def run_both(beside, here):
        beside()
        if where == "climbing":
            here()
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(crew.chords.pool, "run_both", run_both)
        assert crew.record(1, "last") == "last"
    crew.members.returned(crew.request(1), "last", "SUCCESS")
    assert crew.sender.sent == [["first", "last"]]


def test_nothing_of_the_chord_reaches_the_tracer(crew, monkeypatch):
    """Whatever goes wrong with the chord after the result is stored is not the task's trouble, and is tried again."""
    crew.finish(0, "first")

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(crew.sender, "decide", fail)
    crew.finish(1, "last")
    crew.mender.timers.flush()
    assert len(crew.mender.told) == 1


def test_another_base_path():
    """Who applies and who works have different ones: the body fails with an error that names both."""
    crew = Crew()
    crew.ticket = replace(crew.ticket, prefix="other/celery-chords/")
    crew.store.delete("base/celery-chords/g/manifest")
    crew.finish(0, "first")
    crew.finish(1, "last")
    (error,) = crew.sender.given_up
    assert "no manifest under base/celery-chords/: it was applied under other/celery-chords/" in str(error)
    assert crew.sender.sent == []


def test_a_nested_header_without_its_manifest():
    """Only the manifest could tell a member's slot: the body fails, the member's own result is stored all the same."""
    crew = Crew()
    crew.ticket = replace(crew.ticket, flat=False)
    crew.store.delete("base/celery-chords/g/manifest")
    assert crew.record(0, "value") == "value"
    assert [type(exc) for exc in crew.sender.given_up] == [ObjectMissing]


def test_a_manifest_that_cannot_be_trusted():
    """Nobody can tell the member's slot: the body fails, and the member's own result is stored all the same."""
    crew = Crew()
    crew.ticket = Ticket("g", 2, flat=False)
    crew.store.put("base/celery-chords/g/manifest", b"garbage")
    assert crew.record(0, "value") == "value"
    assert [type(exc) for exc in crew.sender.given_up] == [Garbled]


# -- a child that was lost


def test_a_lost_child(crew):
    """A member whose SUCCESS and part are stored, and whose process is gone: a child of some pool goes on."""
    crew.finish(0, "first")
    crew.record(1, "last")
    crew.store.requests.clear()
    crew.members.lost(crew.request(1))
    assert len(crew.mender.told) == 1
    assert crew.store.requests == []


def test_a_lost_child_of_no_chord(crew):
    """A task that is no member's asks for nothing more."""
    crew.members.lost(SimpleNamespace(id="alone", chord=None))
    assert crew.mender.told == []


# -- add_to_chord


def test_a_member_that_adds_tasks(crew, monkeypatch):
    """The part names what was added; the body waits for that, and gets its value behind the member's."""
    request = crew.request(0)
    monkeypatch.setattr(members, "current_task", lambda: SimpleNamespace(request=request))
    crew.members.add(SimpleNamespace(id="added"))
    added = SimpleNamespace(id="added", chord={"options": dict(request.chord["options"])}, group_index=None)
    crew.members.returned(request, "first", "SUCCESS")
    crew.finish(1, "last")
    assert crew.sender.sent == []
    crew.members.returned(added, "more", "SUCCESS")
    assert crew.sender.sent == [["first", "more", "last"]]


def test_adding_to_no_chord(crew, monkeypatch):
    """A task that is no member is told so."""
    monkeypatch.setattr(members, "current_task", lambda: SimpleNamespace(request=SimpleNamespace(id="x", chord=None)))
    with pytest.raises(NotImplementedError, match="natively"):
        crew.members.add(SimpleNamespace(id="added"))


def deferred(crew, number):
    """What another thread does for a member that has ended."""
    with crew.members.reporting():
        return crew.members.deferred(f"t{number}", f"v{number}", "SUCCESS", crew.request(number))


def test_a_member_in_another_thread(crew):
    """Its part, its result, the way up: in that order, with nothing left to do for the thread that ran the task."""
    for number in range(2):
        carry_out = deferred(crew, number)
        crew.members.returned(crew.request(number), f"v{number}", "SUCCESS")
        assert crew.parts() == list(range(number))
        carry_out(lambda number=number: crew.stored.append((f"t{number}", crew.parts())))
    assert crew.stored == [("t0", [0]), ("t1", [0, 1])]
    assert crew.sender.sent == [["v0", "v1"]]


def test_of_those_under_way_together_the_last_goes_up():
    """Members of a node that one process delivers at the same time: one of them looks for the others, once."""
    crew = Crew(3, pool=8)
    met = threading.Barrier(3)
    deliver = crew.chords.deliver

    def together(*args, **how):
        met.wait(10)
        found = deliver(*args, **how)
        met.wait(10)
        return found

    crew.chords.deliver = together
    threads = [threading.Thread(target=deferred(crew, number), args=(lambda: None,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert crew.sender.sent == [["v0", "v1", "v2"]]
    assert sum(verb == "GET" for verb, key in crew.store.requests if "/0/" in key.rpartition("g/")[2]) <= 2
    assert not crew.members._together._count
