"""Faults between the backend and a real server: no result lost, no SUCCESS overwritten, a clear error at the end."""

from __future__ import annotations

import json
import random
import threading
from contextlib import suppress

import pytest
from celery import states
from celery.exceptions import BackendGetMetaError, BackendStoreError

from celery_s3.errors import CeleryS3Error, ResultNotRead, ResultNotStored
from celery_s3.results.write_once import WriteOutcome

CLIENTS = ["obstore", "boto3"]
#: Seconds: short, so that a hang is soon over.
READ_TIMEOUT = 0.3

WRITE_FAULTS = [
    "slow_down",
    "too_many_requests",
    "internal_error",
    "bad_gateway",
    "gateway_timeout",
    "conflict",
    "reset",
    "hang",
    "slow_down_after",
    "internal_error_after",
    "bad_gateway_after",
    "conflict_after",
    "reset_after",
    "hang_after",
    "truncate",
]
#: As `slow_down` and `internal_error` beyond the seam where errors are translated.
ALIKE = {"too_many_requests", "bad_gateway", "gateway_timeout", "slow_down_after", "bad_gateway_after"}
READ_FAULTS = ["slow_down", "internal_error", "conflict", "reset", "hang", "truncate"]


@pytest.fixture
def backend_for(seaweed, proxy, make_app):
    """``backend_for(client="boto3")``: a backend behind the proxy, as a process of its own would have one."""

    def make(**overrides):
        conf = {name: overrides.pop(name) for name in list(overrides) if name.startswith("result_")}
        values = {"endpoint_url": proxy.endpoint_url, "read_timeout": READ_TIMEOUT, "outage_patience": 0} | overrides
        backend = make_app(seaweed, s3_backend_settings=values, **conf).backend
        assert backend.results.conditional.supported()
        return backend

    return make


@pytest.fixture(params=CLIENTS)
def backend(request, backend_for, proxy):
    one = backend_for(client=request.param)
    proxy.reset()
    return one


@pytest.fixture
def stored(seaweed, prefix):
    """``stored(id)``: what stands there, past every client under test and past the proxy; ``None`` for nothing."""

    def look(task_id):
        status, body = seaweed.request("GET", f"/{seaweed.bucket}/{prefix}celery-task-meta-{task_id}")
        assert status in (200, 404)
        return json.loads(body) if status == 200 else None

    return look


def keys(backend):
    """The result keys that there are."""
    return [entry.key for entry in backend.store.list(backend.settings.base) if "task-meta" in entry.key]


# -- single faults


@pytest.mark.parametrize("fault", sorted({*WRITE_FAULTS} - ALIKE))
def test_a_write_survives(backend, proxy, stored, fault):
    """A SUCCESS is stored once, right, in a bounded number of requests, whatever happens to the first tries."""
    proxy.fail("PUT", fault, times=2)
    backend.store_result("id", {"answer": 42}, states.SUCCESS)
    # each try, a look whether an earlier one landed, and a try after it
    assert len(proxy.records()) <= 6
    proxy.heal()
    assert keys(backend) == [backend.settings.base + "celery-task-meta-id"]
    assert stored("id")["result"] == {"answer": 42}
    assert backend.get_result("id") == {"answer": 42}


@pytest.mark.parametrize("fault", ["slow_down", "conflict", "reset", "hang"])
def test_a_late_failure_does_not_win(backend_for, proxy, stored, fault):
    """A FAILURE that meets faults on its way does not replace another process's SUCCESS."""
    backend_for().store_result("id", "done", states.SUCCESS)
    late = backend_for()
    for match in ("PUT", "GET"):
        proxy.fail(match, fault, times=2)
    late.mark_as_failure("id", ValueError("late"))
    assert (stored("id")["status"], stored("id")["result"]) == ("SUCCESS", "done")


@pytest.mark.parametrize("fault", ["conflict_after", "reset_after", "hang_after"])
def test_a_success_replaces_the_state_before_it(backend, backend_for, proxy, stored, fault):
    """STARTED by this process or by another one, then a SUCCESS that meets faults: SUCCESS stands there."""
    backend.store_result("mine", None, states.STARTED)
    backend_for().store_result("others", None, states.STARTED)
    for task_id in ("mine", "others"):
        proxy.fail("PUT", fault, times=2)
        backend.store_result(task_id, task_id, states.SUCCESS)
        proxy.heal()
        assert (stored(task_id)["status"], stored(task_id)["result"]) == ("SUCCESS", task_id)


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_read_survives(backend, proxy, fault):
    """Small and large results are fetched whole, whatever happens to the first tries."""
    backend.store_result("small", "s", states.SUCCESS)
    backend.store_result("large", "x" * 300_000, states.SUCCESS)
    for task_id, value in (("small", "s"), ("large", "x" * 300_000)):
        proxy.fail("GET", fault, times=2)
        assert backend.get_result(task_id) == value
        proxy.fail("GET", fault, times=1, after=1)
        assert backend.get_many([task_id]).__next__()[1]["result"] == value
        proxy.heal()


@pytest.mark.parametrize("fault", ["slow_down", "reset", "hang", "truncate"])
def test_an_absent_result_stays_absent(backend, proxy, fault):
    """Faults on the way to an answer of 404 do not turn it into anything else than PENDING."""
    proxy.fail("GET", fault, times=2)
    assert backend.get_state("nobody") == states.PENDING


def test_slow_bodies(backend, proxy):
    """A body that trickles in is waited for as long as something comes."""
    backend.store_result("large", "x" * 60_000, states.SUCCESS)
    proxy.fail("GET", "slow_body", seconds=3 * READ_TIMEOUT)
    assert backend.get_result("large") == "x" * 60_000


def test_forget_survives(backend, proxy, stored):
    """A result is forgotten although the answer was lost."""
    backend.store_result("id", 1, states.SUCCESS)
    proxy.fail("DELETE", "reset_after", times=2)
    backend.forget("id")
    assert stored("id") is None


def test_the_server_is_away_for_a_second(backend, proxy, stored):
    """Connections are refused for a second: the write waits for the server."""
    backend.store_result("before", 1, states.SUCCESS)
    proxy.down()
    timer = threading.Timer(1.0, proxy.up)
    timer.start()
    backend.store_result("during", 2, states.SUCCESS)
    timer.join()
    assert stored("during")["result"] == 2
    assert backend.get_result("during") == 2


# -- the budget


def full(error):
    """Everything that an error says, and what it says of its causes."""
    texts = []
    while error is not None:
        texts.append(f"{error} {error!r}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("fault", "reason", "remedy"),
    [
        ("slow_down", "slow down (503 SlowDown)", "`max_retries`"),
        ("internal_error", "the server failed (500 InternalError)", "`max_retries`"),
        ("conflict", "conflicting operation was in flight (409 ConditionalRequestConflict)", "`max_retries`"),
        ("reset", "connection broke", "`read_timeout`"),
        ("hang", "connection broke", "`read_timeout`"),
    ],
)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_spent_budget(seaweed, backend_for, proxy, client, fault, reason, remedy):
    """With `max_retries=1` there are two tries and one error: which task, which object, what happened, what to do."""
    backend = backend_for(client=client, max_retries=1)
    proxy.reset()
    proxy.fail("*", fault, times=-1)
    with pytest.raises(ResultNotStored) as not_stored:
        backend.store_result("some-id", 1, states.SUCCESS)
    with pytest.raises(ResultNotRead) as not_read:
        backend.get_state("some-id")
    assert proxy.methods() == {"PUT": 2, "GET": 2}
    assert isinstance(not_stored.value, BackendStoreError)
    assert isinstance(not_read.value, BackendGetMetaError)
    for error in (not_stored.value, not_read.value):
        for text in ("some-id", f"s3://{seaweed.bucket}/", "celery-task-meta-some-id", reason, remedy, "2 tries"):
            assert text in str(error)
        assert seaweed.secret_key not in full(error)


def test_a_server_that_is_away_for_good(backend_for, proxy):
    """Nobody listens: an error that names the endpoint's setting, never PENDING."""
    backend = backend_for(max_retries=1)
    with proxy.down():
        for call in (lambda: backend.store_result("id", 1, states.SUCCESS), lambda: backend.get_state("id")):
            with pytest.raises(CeleryS3Error, match=r"cannot be reached.*`endpoint_url`"):
                call()


def test_always_retry(backend_for, proxy, stored):
    """`result_backend_always_retry` goes on behind a spent budget, for writes and reads."""
    backend = backend_for(max_retries=1, result_backend_always_retry=True)
    proxy.fail("PUT", "internal_error", times=7)
    backend.store_result("id", 1, states.SUCCESS)
    proxy.fail("GET", "reset", times=7)
    assert backend.get_state("id") == states.SUCCESS
    assert stored("id")["result"] == 1


def test_always_retry_gives_up_what_is_refused(backend_for, proxy):
    """It does not go on where the same request would be refused again."""
    backend = backend_for(max_retries=1, result_backend_always_retry=True)
    proxy.fail("*", "access_denied", times=-1)
    with pytest.raises(ResultNotStored, match="access denied"):
        backend.store_result("id", 1, states.SUCCESS)


# -- any combination


class Writer:
    """A process that stores states, and checks what stands there after each.

    Arguments:
        final: the SUCCESS that was seen for each id, shared by all writers.
    """

    def __init__(self, name, backend, stored, final):
        self.name = name
        self.backend = backend
        self.stored = stored
        self.final = final
        self.outcome = None
        self.write_result, backend.results.write = backend.results.write, self.watched

    def watched(self, *args, **kwargs):
        self.outcome = self.write_result(*args, **kwargs)
        return self.outcome

    def write(self, task_id, state, number):
        """Store a state; return what stands there then."""
        value = f"{self.name} {number}"
        result = ValueError(value) if state in states.EXCEPTION_STATES else value
        self.outcome = None
        with suppress(ResultNotStored):
            self.backend.store_result(task_id, result, state)
        found = self.stored(task_id)
        assert found is not None or self.outcome is None, "an acknowledged write is not there"
        if found and found["status"] == states.SUCCESS:
            assert self.final.setdefault(task_id, found) == found, "a SUCCESS was overwritten"
        return found


@pytest.fixture
def writers(backend_for, stored):
    """``writers(max_retries=2)``: two processes, one with either client."""

    def make(**settings):
        final = {}
        backends = [backend_for(client=client, **settings) for client in CLIENTS]
        return [Writer(name, backend, stored, final) for name, backend in zip("ab", backends, strict=True)]

    return make


def some_faults(chance, proxy):
    for _ in range(chance.randrange(6)):
        match, how = chance.choice(("PUT", "PUT", "GET")), chance.choice(WRITE_FAULTS)
        if match == "GET":
            how = how.removesuffix("_after")
        proxy.fail(match, how, times=chance.choice((1, 1, 2, 4)), after=chance.randrange(4), seconds=2.0)


STATES = [states.STARTED, states.RETRY, states.FAILURE, states.SUCCESS, "PROGRESS"]


@pytest.mark.parametrize("seed", range(3))
def test_two_writers_in_turn(writers, proxy, stored, seed):
    """After each write of either: what was acknowledged stands there, unless a SUCCESS did, which never changes."""
    chance = random.Random(seed)
    both = writers(max_retries=2)
    for number in range(30):
        if number % 5 == 0:
            proxy.heal()
            some_faults(chance, proxy)
        writer, task_id, state = chance.choice(both), chance.choice("xyz"), chance.choice(STATES)
        before = stored(task_id)
        found = writer.write(task_id, state, number)
        if writer.outcome is WriteOutcome.WRITTEN:
            assert found["status"] == state
            assert f"{writer.name} {number}" in json.dumps(found["result"])
        elif writer.outcome is WriteOutcome.KEPT:
            assert found == before
            # a RETRY gives way to any final state
            assert found["status"] in (states.READY_STATES if state == states.RETRY else (states.SUCCESS, state))


@pytest.mark.parametrize("seed", range(3))
def test_two_writers_at_once(writers, proxy, stored, seed):
    """Two that write the same results at the same time: one SUCCESS for each id, which never changes."""
    chance = random.Random(seed)
    both = writers(max_retries=4)
    plan = [(task_id, chance.choice(STATES)) for task_id in "xyz" for _ in range(4)]
    some_faults(chance, proxy)
    failures = []

    def run(writer):
        try:
            for number, (task_id, state) in enumerate(plan):
                writer.write(task_id, state, number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(writer,)) for writer in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    proxy.heal()
    for task_id in "xyz":
        found = stored(task_id)
        assert found["status"] == states.SUCCESS or (task_id, states.SUCCESS) not in plan
        assert {writer.backend.get_state(task_id) for writer in both} == {found["status"]}


@pytest.mark.parametrize("late", [states.FAILURE, states.RETRY, states.STARTED])
def test_a_success_between_reading_and_writing(writers, stored, late):
    """Another process stores SUCCESS at the worst moment, between this one's look and its second try: it stays."""
    early, slow = writers()
    early.write("id", states.STARTED, 1)
    look = slow.backend.store.get

    def looked(*args, **options):
        found = look(*args, **options)
        early.write("id", states.SUCCESS, 2)
        return found

    slow.backend.store.get = looked
    assert slow.write("id", late, 3)["result"] == "a 2"
    assert slow.outcome is WriteOutcome.KEPT
