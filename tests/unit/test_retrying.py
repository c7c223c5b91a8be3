"""What is tried again, what is not, and how an unclear write is settled. No test waits."""

from __future__ import annotations

import logging
import pickle
from contextlib import nullcontext
from time import monotonic
from types import SimpleNamespace

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import given
from hypothesis import strategies as st

from celery_s3 import errors
from celery_s3.errors import (
    AccessDenied,
    Ambiguous,
    BadCredentials,
    BadRequest,
    Conflict,
    Interrupted,
    ObjectMissing,
    PreconditionFailed,
    Refused,
    ServerFault,
    StoreError,
    Throttled,
    Transient,
    Unreachable,
)
from celery_s3.store import deadline
from celery_s3.store.api import CREATE, Match
from celery_s3.store.counting import Counting, Tally
from celery_s3.store.deadline import patient, retried_until, retried_while
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.outage import Outage
from celery_s3.store.retrying import Retrying, RetryPolicy

TRANSIENT = [Throttled, Unreachable, ServerFault, Conflict, Interrupted]
REFUSED = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, StoreError)
    and not issubclass(cls, Transient)
    and cls is not StoreError
]


class Time:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def make(memory, time):
    def make(**options) -> Retrying:
        return Retrying(memory, sleep=time.sleep, clock=time.clock, random=lambda: 1.0, **options)

    return make


def calls(store: Retrying):
    return {
        "PUT": lambda: store.put("k", b"body"),
        "GET": lambda: store.get("k"),
        "DELETE": lambda: store.delete("k"),
        "DELETE_OBJECTS": lambda: store.delete_many(["k"]),
        "LIST": lambda: [entry.key for entry in store.list("k")],
    }


VERBS = list(calls(Retrying(MemoryStore())))


# -- what is tried again


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", TRANSIENT)
@pytest.mark.parametrize("landed", [False, True])
def test_transient_errors_are_tried_again(memory, make, verb, error, landed):
    """Every verb survives every transient error, whether or not the request was carried out."""
    memory.put("k", b"body")
    memory.faults.append(Fault(error(), verb, times=3, landed=landed and issubclass(error, Ambiguous)))
    memory.requests.clear()
    answer = calls(make())[verb]()
    assert [one for one, _ in memory.requests] == [verb] * 4
    if verb == "GET":
        assert answer.body == b"body"
    if verb == "LIST":
        assert answer == ["k"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", REFUSED)
def test_other_errors_are_raised_at_once(memory, make, time, verb, error):
    """A refusal, a failed precondition and absence cost one request and no wait.

    A batch of deletes that the server does not understand is deleted one by one.
    """
    memory.faults.append(Fault(error("no"), verb, times=-1))
    one_by_one = verb == "DELETE_OBJECTS" and error is BadRequest
    with nullcontext() if one_by_one else pytest.raises(error):
        calls(make())[verb]()
    assert [one for one, _ in memory.requests] == ([verb, "DELETE"] if one_by_one else [verb])
    assert time.slept == []


@pytest.mark.parametrize("verb", VERBS)
def test_budget_spent(memory, make, verb):
    """The last error is raised, and its message says how often and how long it was tried."""
    memory.faults.append(Fault(Unreachable("first"), verb))
    memory.faults.append(Fault(Interrupted("last.", "put", "b", "k", 500, "X"), verb, times=-1))
    with pytest.raises(Interrupted, match=r"last; 5 tries in 0\.[78] s") as caught:
        calls(make(policy=RetryPolicy(retries=4)))[verb]()
    assert len(memory.requests) == 5
    assert isinstance(caught.value.__cause__, Interrupted)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (caught.value.status, caught.value.code, caught.value.key) == (500, "X", "k")


@pytest.mark.parametrize("verb", VERBS)
def test_deadline_of_the_caller(memory, make, time, verb):
    """Inside a wait that is over, a request is not tried again; outside of it, it is."""
    memory.put("k", b"")
    memory.faults.append(Fault(Interrupted("lost"), verb, times=2))
    with retried_until(monotonic()), pytest.raises(Interrupted, match="1 try"):
        calls(make())[verb]()
    assert time.slept == []
    calls(make())[verb]()
    assert len(time.slept) == 1


# -- patience


@pytest.fixture
def patience(monkeypatch, time):
    """The clock of deadlines is the test's."""
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=time.clock))


@pytest.mark.parametrize("error", [Throttled, Unreachable, ServerFault, Interrupted])
def test_what_must_not_be_lost_outlives_an_outage(memory, make, time, patience, error):
    """Inside of `patient` an outage is waited for, with waits of at most 5 s, whatever `max_retries` says."""
    memory.faults.append(Fault(error(), times=100))
    store = make(policy=RetryPolicy(retries=0))
    with patient(3600):
        store.put("k", b"body")
    assert memory.get("k").body == b"body"
    assert len(time.slept) == 100
    assert max(time.slept) == 5.0


def test_patience_ends(memory, make, time, patience):
    """After so many seconds in all the error is raised, and says how long it was tried."""
    memory.faults.append(Fault(Unreachable(), times=1000))
    store = make(policy=RetryPolicy(retries=0))
    with patient(300):
        with pytest.raises(Unreachable, match=r"tries in 29\d\.\d s"):
            store.put("k", b"")
        with pytest.raises(Unreachable):
            store.put("k", b"")
    assert 290 < time.now <= 300


def test_a_callers_deadline_bounds_patience(memory, make, time, patience):
    """A hard stop, or an upload that was given up, ends a patient request too."""
    memory.faults.append(Fault(Unreachable(), times=1000))
    with patient(3600), retried_until(10.0), pytest.raises(Unreachable):
        make().put("k", b"")
    assert time.now <= 10
    with patient(3600), retried_while(lambda: False), pytest.raises(Unreachable):
        make().put("k", b"")
    assert time.now <= 10


@pytest.mark.parametrize("error", [AccessDenied(), BadCredentials(), Conflict()])
def test_what_is_no_outage_is_not_waited_for(memory, make, time, patience, error):
    """A refusal is raised at once, and conflicts do not hold a task for an hour."""
    memory.faults.append(Fault(error, times=1000))
    with patient(3600), pytest.raises(type(error)):
        make().put("k", b"")
    assert time.now < 60


def test_a_patient_write_whose_answer_is_lost(memory, make, patience):
    """A conditional write that has landed unseen, long before the outage is over, is settled by reading."""
    memory.faults.append(Fault(Interrupted(), "PUT", landed=True))
    memory.faults.append(Fault(Unreachable(), times=50))
    with patient(3600):
        etag = make().put("k", b"mine", precondition=CREATE)
    assert (etag, memory.get("k").body) == (memory.get("k").etag, b"mine")


def test_an_outage_is_told_once(memory, make, time, patience, caplog):
    """One line when it begins, one every half minute, one when it is over; none for a moment's trouble."""
    store = make()
    memory.faults.append(Fault(Unreachable("refused"), times=2))
    with caplog.at_level(logging.WARNING), patient(3600):
        store.put("short", b"")
        assert caplog.messages == []
        began = time.now
        memory.faults.append(Fault(Unreachable("refused"), times=40))
        store.put("long", b"")
        store.put("after", b"")
    lasted = time.now - began
    assert 160 < lasted < 180
    first, *middle, last = caplog.messages
    assert "it is kept, and tried again" in first
    assert "refused" in first
    assert [int(line.partition(" for ")[2].partition(" s")[0]) // 30 for line in middle] == [1, 2, 3, 4, 5]
    assert last == f"S3 answers again: what had to wait is stored, after {lasted:.0f} s."


def test_an_outage_that_is_given_up_is_not_over(memory, make, time, patience, caplog):
    """Nothing says that S3 answers again where the patience has ended."""
    memory.faults.append(Fault(Unreachable(), times=1000))
    with caplog.at_level(logging.WARNING), patient(20), pytest.raises(Unreachable):
        make().put("k", b"")
    assert [line.partition(":")[0] for line in caplog.messages] == ["S3 does not take what must not be lost"]


def test_many_that_wait_are_one_outage(caplog):
    """However many requests wait: one beginning, one end, when the last of them is through."""
    now = [0.0]
    outage = Outage(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        now[0] = 2.0
        assert all(outage.joined(Unreachable(), since) for since in (0.0, 0.5, 1.0))
        assert not outage.joined(Unreachable(), 1.5)
        now[0] = 40.0
        for _ in range(3):
            outage.lasts(Unreachable())
        for _ in range(3):
            outage.left(answered=True)
    assert len(caplog.messages) == 3
    assert "for 40 s, writes that wait: 3" in caplog.messages[1]


def test_no_retries(memory, make):
    """A budget of none is one try, and says so."""
    memory.faults.append(Fault(Conflict()))
    with pytest.raises(Conflict, match=r"1 try in 0\.0 s"):
        make(policy=RetryPolicy(retries=0)).put("k", b"")


def test_retries_are_counted(memory, make):
    """Each try is a request of the tally, each decision to try again a retry."""
    tally = Tally()
    store = Retrying(Counting(memory, tally), tally=tally, sleep=lambda _: None)
    memory.faults.append(Fault(Throttled(), times=2))
    store.put("k", b"")
    line = tally.snapshot()["PUT"]
    assert (line["requests"], line["retries"], line["Throttled"]) == (3, 2, 2)


# -- how long is waited


def test_waits_grow_and_are_capped(memory, make, time):
    """50 ms, doubled up to 5 s; with a random share of 1 each wait is the longest possible."""
    memory.faults.append(Fault(Unreachable(), times=8))
    make().put("k", b"")
    assert time.slept == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]


def test_throttled_waits_longer(memory, make, time):
    """A server that asks to slow down is left alone for longer."""
    memory.faults.append(Fault(Throttled(), times=3))
    make().put("k", b"")
    assert time.slept == [0.2, 0.4, 0.8]


@given(
    st.integers(1, 10_000),
    st.sampled_from(TRANSIENT),
    st.floats(0, 1, exclude_max=True),
    st.builds(RetryPolicy, st.integers(0, 20), st.floats(0.001, 1), st.floats(0.001, 1), st.floats(0.01, 10)),
)
def test_wait_is_between_nothing_and_the_cap(tries, error, share, policy):
    """Full jitter: anything from nothing on, never above the cap, however often it was tried."""
    assert 0 <= policy.wait(tries, error(), share) <= policy.cap


def test_soft_time_limit_passes_through(memory, time):
    """What a signal raises in the middle of a wait is not an error of the store."""

    def sleep(seconds: float) -> None:
        raise SoftTimeLimitExceeded

    memory.faults.append(Fault(Throttled()))
    with pytest.raises(SoftTimeLimitExceeded):
        Retrying(memory, sleep=sleep).put("k", b"")


def test_sleep_is_looked_up_when_it_is_needed(memory, monkeypatch):
    """Monkey-patching after the import, as gevent does, reaches the waits."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    memory.faults.append(Fault(Unreachable()))
    Retrying(memory).put("k", b"")
    assert len(slept) == 1


# -- conditional writes


@pytest.mark.parametrize("error", TRANSIENT)
@pytest.mark.parametrize("replaces", [False, True])
def test_our_own_write_that_landed_unseen(memory, make, error, replaces):
    """A retry that is refused because our first try landed is a success: one GET, and the etag that stands."""
    precondition = Match(memory.put("k", b"old")) if replaces else CREATE
    memory.faults.append(Fault(error(), "PUT", landed=True))
    memory.requests.clear()
    etag = make().put("k", b"new", precondition=precondition)
    assert etag == memory.get("k").etag
    assert memory.requests[:3] == [("PUT", "k"), ("PUT", "k"), ("GET", "k")]


@pytest.mark.parametrize("body", [b"theirs", b"", b"ours and more"])
def test_another_write_came_first(memory, make, body):
    """Where other bytes stand, also longer ones that begin like ours, the refusal is real."""
    memory.put("k", body)
    memory.faults.append(Fault(Interrupted(), "PUT"))
    with pytest.raises(PreconditionFailed):
        make().put("k", b"ours", precondition=CREATE)
    assert memory.get("k").body == body


def test_an_empty_body_is_settled_too(memory, make):
    """Nothing is a body like any other."""
    memory.faults.append(Fault(Interrupted(), "PUT", landed=True))
    assert make().put("k", b"", precondition=CREATE) == memory.get("k").etag


@pytest.mark.parametrize("precondition", [CREATE, Match('"other"')])
def test_a_refusal_on_the_first_try_costs_nothing_more(memory, make, precondition):
    """A refusal with no try before it is raised at once, without a request."""
    memory.put("k", b"theirs")
    memory.requests.clear()
    with pytest.raises(PreconditionFailed):
        make().put("k", b"ours", precondition=precondition)
    assert memory.requests == [("PUT", "k")]


def test_refused_create_without_an_object_is_tried_again(memory, make):
    """A create that was refused although nothing stands there (deleted meanwhile) is made again."""
    memory.faults.append(Fault(Interrupted(), "PUT"))
    memory.faults.append(Fault(PreconditionFailed(), "PUT"))
    make().put("k", b"ours", precondition=CREATE)
    assert memory.get("k").body == b"ours"
    assert [verb for verb, _ in memory.requests] == ["PUT", "PUT", "GET", "PUT", "GET"]


def test_refused_replacement_without_an_object_is_refused(memory, make):
    """A replacement has nothing to replace once the object is gone."""
    memory.faults.append(Fault(Interrupted(), "PUT"))
    with pytest.raises(PreconditionFailed):
        make().put("k", b"ours", precondition=Match('"e"'))
    assert [verb for verb, _ in memory.requests] == ["PUT", "PUT", "GET"]


def test_settling_has_the_budget_of_its_write(memory, make):
    """Errors of the GET that settles count towards the one budget: a broken server is not asked 80 times."""
    memory.put("k", b"ours")
    memory.requests.clear()
    memory.faults.append(Fault(Interrupted(), "PUT"))
    memory.faults.append(Fault(Interrupted(), "GET", times=-1))
    with pytest.raises(Interrupted, match="9 tries"):
        make().put("k", b"ours", precondition=CREATE)
    assert sum(verb == "PUT" for verb, _ in memory.requests) == 9


@given(st.lists(st.tuples(st.sampled_from(TRANSIENT), st.booleans()), max_size=8))
def test_a_create_lands_once_whatever_happens(happenings):
    """After any row of errors within the budget, our bytes stand there and the answer is their etag."""
    memory = MemoryStore()
    memory.faults += [Fault(error(), "PUT", landed=landed) for error, landed in happenings]
    store = Retrying(memory, sleep=lambda _: None)
    etag = store.put("k", b"ours", precondition=CREATE)
    assert memory.get("k") == store.get("k")
    assert (memory.get("k").etag, memory.get("k").body) == (etag, b"ours")


# -- many objects


def test_listing_goes_on_behind_the_last_key(memory, make):
    """An error on the second page repeats nothing and leaves nothing out."""
    keys = [f"{number:04}" for number in range(2500)]
    for key in keys:
        memory.put(key, b"")
    memory.requests.clear()
    memory.faults.append(Fault(ServerFault(), "LIST", times=3, after=1))
    assert [entry.key for entry in make().list("")] == keys
    assert len(memory.requests) == 3 + 3


def test_listing_that_gets_on_has_a_new_budget(memory, make):
    """The budget is for one page, not for a listing of any length."""
    for number in range(5000):
        memory.put(f"{number:04}", b"")
    memory.faults += [Fault(ServerFault(), "LIST", times=2, after=page) for page in range(4)]
    assert len(list(make(policy=RetryPolicy(retries=8)).list(""))) == 5000


def test_deleting_many_repeats_only_what_failed(memory, make):
    """Each thousand is a request with tries of its own."""
    keys = [f"{number:04}" for number in range(2500)]
    memory.faults.append(Fault(ServerFault(), "DELETE_OBJECTS", "1000"))
    make().delete_many(keys)
    assert [key for _, key in memory.requests] == ["0000", "1000", "1000", "2000"]


# -- 403


def denied(memory: MemoryStore, *verbs: str, error: type[StoreError] = AccessDenied) -> None:
    memory.faults += [Fault(error("no"), verb, times=-1) for verb in verbs]


def test_denied_raises_while_nothing_has_ever_worked(memory, make):
    """Credentials that never worked are the wrong ones, not a result that does not exist."""
    denied(memory, "GET", "LIST")
    with pytest.raises(AccessDenied):
        make().get("k")
    assert memory.requests == [("GET", "k")]


def test_denied_reads_as_missing_where_listing_is_denied_too(memory, make):
    """AWS answers 403 for an absent key to those who may not list: one LIST finds out, once."""
    denied(memory, "GET", "LIST")
    store = make(base="base/")
    store.put("k", b"")
    for _ in range(3):
        with pytest.raises(ObjectMissing):
            store.get("absent")
    assert memory.requests.count(("LIST", "base/celery-s3-probe")) == 1


def test_denied_raises_where_listing_is_allowed(memory, make):
    """Who may list gets 404 for absent keys: 403 is a denial, and asked about only once."""
    denied(memory, "GET")
    store = make()
    store.put("k", b"")
    for _ in range(3):
        with pytest.raises(AccessDenied):
            store.get("k")
    assert sum(verb == "LIST" for verb, _ in memory.requests) == 1


def test_missing_as_403_says_so(memory, make):
    """With `missing_as_403` nothing is asked."""
    denied(memory, "GET")
    with pytest.raises(ObjectMissing):
        make(missing_as_403=True).get("absent")
    assert memory.requests == [("GET", "absent")]


@pytest.mark.parametrize(
    "error", [error for error in REFUSED if issubclass(error, Refused) and error is not AccessDenied]
)
def test_other_refusals_never_read_as_missing(memory, make, error):
    """Wrong keys, a missing bucket and the rest always raise."""
    store = make(missing_as_403=True)
    store.put("k", b"")
    denied(memory, "GET", "LIST", error=error)
    with pytest.raises(error):
        store.get("k")


def test_denied_writes_raise(memory, make):
    """Only a GET can read as missing."""
    denied(memory, "PUT", "DELETE")
    store = make(missing_as_403=True)
    for call in (lambda: store.put("k", b""), lambda: store.delete("k")):
        with pytest.raises(AccessDenied):
            call()


def test_bad_credentials_are_no_answer_about_listing(memory, make):
    """Where the LIST that should tell fails otherwise, that error is raised and nothing is remembered."""
    store = make()
    store.put("k", b"")
    denied(memory, "GET")
    memory.faults.append(Fault(BadCredentials("expired"), "LIST"))
    denied(memory, "LIST")
    with pytest.raises(BadCredentials):
        store.get("absent")
    with pytest.raises(ObjectMissing):
        store.get("absent")
