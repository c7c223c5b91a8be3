"""The write-once and read protocol over a bucket in memory, in every order in which writers can take turns."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time

import greenlet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_s3.codec import raw
from celery_s3.codec.chunks import Chunks, one_body
from celery_s3.codec.decoding import Whole
from celery_s3.errors import Conflict, Interrupted, ObjectMissing, PreconditionFailed, StoreError, Throttled
from celery_s3.results import write_once
from celery_s3.results.write_once import (
    AT_ONCE,
    HEAD_BYTES,
    LOST_RACES,
    PART_BYTES,
    VERSIONS,
    Results,
    WriteOutcome,
)
from celery_s3.store import deadline
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.retrying import Retrying
from celery_s3.store.uploads import MultipartWriter

KEY = "celery-task-meta-job"
WRITTEN, KEPT = WriteOutcome.WRITTEN, WriteOutcome.KEPT


class Server:
    """Whether it has conditional writes."""

    def __init__(self, supported=True):
        self._supported = supported

    def supported(self):
        return self._supported


def state_in(whole):
    return whole.about.metadata.get("state")


def results_over(store, supported=True, **kwargs):
    pool = Pool(1)
    return Results(store, MultipartWriter(store, pool), Server(supported), pool, state_in=state_in, **kwargs)


def write(results, state, body=b"", key=KEY):
    return results.write(key, body or state.encode(), state, {"state": state}, "text/plain")


def stands(store):
    try:
        return store.get(KEY).metadata["state"]
    except ObjectMissing:
        return None


def verbs(store):
    return [verb for verb, _ in store.requests]


# -- the main process of a worker


def test_the_main_process_reads_no_body(monkeypatch):
    """What stands there without our metadata may be anybody's, and of any size: one request, and nothing decoded."""
    store = MemoryStore()
    monkeypatch.setattr(write_once, "prefork_parent", lambda: True)
    results = results_over(store)
    results.state_in = pytest.fail
    store.put(KEY, b"x" * 1_000_000)
    store.requests.clear()
    assert write(results, "REVOKED") is KEPT
    assert verbs(store) == ["PUT", "GET"]


# -- one writer


def test_one_put():
    """A result that nobody has written yet is one PUT."""
    store = MemoryStore()
    assert write(results_over(store), "SUCCESS") is WRITTEN
    assert verbs(store) == ["PUT"]


def test_own_states_follow_each_other():
    """A process that wrote the state before replaces it in one PUT."""
    store = MemoryStore()
    results = results_over(store)
    for state in ("STARTED", "PROGRESS", "RETRY", "STARTED", "SUCCESS"):
        assert write(results, state) is WRITTEN
    assert verbs(store) == ["PUT"] * 5


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("late", ["SUCCESS", "FAILURE", "RETRY", "STARTED", "REVOKED", "PROGRESS"])
def test_success_is_final(late, supported):
    """No later write takes a SUCCESS's place, in the same process or in another one."""
    store = MemoryStore(conditional=supported)
    results = results_over(store, supported)
    write(results, "SUCCESS", b"first")
    for writer in (results, results_over(store, supported)):
        assert write(writer, late, b"late") is KEPT
    assert store.get(KEY).body == b"first"


def test_requests_of_a_refused_write():
    """A write that meets a SUCCESS costs one PUT and one GET; one that meets something else a PUT more."""
    store = MemoryStore()
    write(results_over(store), "FAILURE")
    store.requests.clear()
    assert write(results_over(store), "SUCCESS") is WRITTEN
    assert verbs(store) == ["PUT", "GET", "PUT"]
    store.requests.clear()
    assert write(results_over(store), "FAILURE") is KEPT
    assert verbs(store) == ["PUT", "GET"]


def test_equal_bytes_count_as_stored():
    """What stands there already, byte by byte, is not written again."""
    store = MemoryStore()
    write(results_over(store), "FAILURE", b"same")
    assert write(results_over(store), "FAILURE", b"same") is KEPT


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("final", ["SUCCESS", "FAILURE", "REVOKED"])
def test_late_retry(final, supported):
    """A RETRY that is stored after the next run has ended changes nothing: nobody would wait for that run again."""
    store = MemoryStore(conditional=supported)
    write(results_over(store, supported), final)
    assert write(results_over(store, supported), "RETRY") is KEPT
    assert stands(store) == final


def test_rerun_looks_first():
    """A later run in another process costs a GET and a PUT; in the same one a PUT."""
    store = MemoryStore()
    first, second = results_over(store), results_over(store)
    write(first, "RETRY")
    store.requests.clear()
    assert second.write(KEY, b"done", "SUCCESS", {"state": "SUCCESS"}, "text/plain", rerun=True) is WRITTEN
    assert verbs(store) == ["GET", "PUT"]
    store.requests.clear()
    other = results_over(store)
    assert other.write("other", b"1", "RETRY", {"state": "RETRY"}, "text/plain") is WRITTEN
    assert other.write("other", b"2", "SUCCESS", {"state": "SUCCESS"}, "text/plain", rerun=True) is WRITTEN
    assert verbs(store) == ["PUT", "PUT"]


def test_rerun_that_finds_nothing():
    """A later run whose first state was forgotten creates its own."""
    store = MemoryStore()
    assert results_over(store).write(KEY, b"1", "SUCCESS", {"state": "SUCCESS"}, "text/plain", rerun=True) is WRITTEN
    assert verbs(store) == ["GET", "PUT"]


def test_revoked_by_every_worker():
    """REVOKED is written once, though every worker reports it."""
    store = MemoryStore()
    assert [write(results_over(store), "REVOKED", body) for body in (b"1", b"2", b"3")] == [WRITTEN, KEPT, KEPT]


@pytest.mark.parametrize("supported", [True, False])
def test_unreadable_object_gives_way_to_a_success_only(caplog, supported):
    """What no process can read may be a SUCCESS: only a SUCCESS takes its place."""
    store = MemoryStore(conditional=supported)
    store.put(KEY, b"garbage")
    with caplog.at_level(logging.WARNING):
        assert write(results_over(store, supported), "FAILURE") is KEPT
        assert write(results_over(store, supported), "SUCCESS") is WRITTEN
    assert KEY in caplog.text


def test_forgotten_in_between():
    """After its state was deleted by another process, a result is stored as new."""
    store = MemoryStore()
    results = results_over(store)
    write(results, "STARTED")
    store.delete(KEY)
    assert write(results, "SUCCESS") is WRITTEN
    assert stands(store) == "SUCCESS"


def test_deleting_forgets_the_version():
    """A process that deletes a state itself creates the next one in one PUT."""
    store = MemoryStore()
    results = results_over(store)
    write(results, "STARTED")
    results.delete(KEY)
    store.requests.clear()
    write(results, "SUCCESS")
    assert verbs(store) == ["PUT"]


def test_losing_for_ever():
    """A writer that always comes second gives up with an error, after a bounded number of tries."""
    number, rival = itertools.count(), MemoryStore()

    def overtake(verb, key):
        if verb == "PUT":
            rival.put(KEY, str(next(number)).encode(), metadata={"state": "RETRY"})

    store = MemoryStore(before=overtake)
    store._objects = rival._objects
    with pytest.raises(Conflict, match=f"s3://[^/]+/.*: {LOST_RACES} other writers"):
        write(results_over(store), "SUCCESS")
    assert verbs(store).count("PUT") == LOST_RACES + 1


def test_create_refused_where_nothing_is():
    """A server that refuses to create what it says is not there is named for it."""
    store = MemoryStore()
    store.faults.append(Fault(PreconditionFailed("", "put", "memory", KEY, 412), "PUT", times=-1))
    with pytest.raises(Conflict, match="yet there is no such object"):
        write(results_over(store), "SUCCESS")


def test_errors_are_raised():
    """What the store raises is raised: no write is lost silently."""
    store = MemoryStore()
    store.faults.append(Fault(Throttled("slow down"), "PUT"))
    with pytest.raises(Throttled):
        write(results_over(store), "SUCCESS")


@pytest.mark.parametrize("first", [None, "STARTED"])
def test_answer_lost(first):
    """A write whose answer is lost is found to have landed, and is final as any other."""
    store = MemoryStore()
    results = results_over(Retrying(store, sleep=lambda seconds: None))
    if first:
        write(results, first)
    store.faults.append(Fault(Interrupted("reset"), "PUT", landed=True))
    assert write(results, "SUCCESS") is WRITTEN
    assert write(results, "FAILURE") is KEPT
    assert stands(store) == "SUCCESS"


def test_versions_are_bounded():
    """The map of versions forgets the oldest; their next write still arrives, by PUT, GET, PUT."""
    store = MemoryStore()
    results = results_over(store)
    for number in range(VERSIONS + 1):
        write(results, "STARTED", key=f"{KEY}-{number}")
    assert len(results._versions) == VERSIONS
    store.requests.clear()
    assert write(results, "SUCCESS", key=f"{KEY}-0") is WRITTEN
    assert verbs(store) == ["PUT", "GET", "PUT"]
    assert write(results, "SUCCESS", key=f"{KEY}-1") is WRITTEN
    assert verbs(store)[3:] == ["PUT"]


# -- large ones

TEXT = "0123456789abcdef" * 2**20 + "!"


def write_large(results, state, body=TEXT):
    return results.write(KEY, one_body(body), state, {"state": state}, "text/plain")


def test_large_body():
    """A large body goes up in parts, after a look; a small one is bytes."""
    store = MemoryStore()
    assert write_large(results_over(store), "SUCCESS") is WRITTEN
    assert verbs(store) == ["GET", "CREATE", "PART", "PART", "PART", "COMPLETE"]
    found = store.get(KEY)
    assert (found.body, found.metadata["state"]) == (TEXT.encode(), "SUCCESS")
    assert one_body(TEXT[:-1]) == one_body(TEXT[:9], TEXT[9:-1].encode()) == TEXT[:-1].encode()


@pytest.mark.parametrize("pieces", [(TEXT,), (b"preamble", TEXT.encode()), ("é" * 2**23, "x")])
def test_chunks(pieces):
    """The chunks of a body are its bytes, in this number, as often as somebody asks."""
    body, whole = one_body(*pieces), b"".join(p.encode() if isinstance(p, str) else p for p in pieces)
    assert isinstance(body, Chunks)
    assert b"".join(body) == b"".join(body) == whole
    assert body.size == len(whole)


def test_half_a_character():
    """A text that UTF-8 cannot hold is no body, however large."""
    with pytest.raises(UnicodeEncodeError):
        one_body("\ud800" + TEXT)


@pytest.mark.parametrize("supported", [True, False])
def test_large_body_is_not_sent_in_vain(supported):
    """Where a SUCCESS stands, nothing of a large one is sent, in the same process or in another one."""
    store = MemoryStore(conditional=supported)
    results = results_over(store, supported)
    write(results, "SUCCESS", b"first")
    store.requests.clear()
    for writer in (results, results_over(store, supported)):
        for state in ("SUCCESS", "FAILURE", "RETRY"):
            assert write_large(writer, state) is KEPT
    assert set(verbs(store)) == {"GET"}


@pytest.mark.parametrize("supported", [True, False])
def test_large_body_over_a_state(supported):
    """A large result replaces its task's state, its own or another process', after a look."""
    for own in (True, False):
        store = MemoryStore(conditional=supported)
        results = results_over(store, supported)
        write(results if own else results_over(store, supported), "STARTED")
        store.requests.clear()
        assert write_large(results, "SUCCESS") is WRITTEN
        assert verbs(store) == ["GET", "CREATE", "PART", "PART", "PART", "COMPLETE"]
        assert write(results, "FAILURE") is KEPT


def overtaken(state, times=1):
    """A store where somebody else stores a state while an upload is under way."""
    left = itertools.repeat(state, times)

    def overtake(verb, key):
        if verb == "COMPLETE" and (other := next(left, None)):
            rival.put(KEY, f"{other} {len(rival.requests)}".encode(), metadata={"state": other})

    rival, store = MemoryStore(), MemoryStore(before=overtake)
    store._objects = rival._objects
    return store


def test_large_body_that_comes_second():
    """A SUCCESS that is stored while a large one goes up stays, and nothing of the other is left."""
    store = overtaken("SUCCESS")
    assert write_large(results_over(store), "SUCCESS") is KEPT
    assert store.get(KEY).body.startswith(b"SUCCESS ")
    assert store.uploads == {}


def test_large_body_against_a_state():
    """Where it was no SUCCESS that came first, the large one goes up again, and replaces it."""
    store = overtaken("STARTED")
    assert write_large(results_over(store), "SUCCESS") is WRITTEN
    assert verbs(store).count("COMPLETE") == 2
    assert store.get(KEY).size == len(TEXT)
    assert store.uploads == {}


def test_large_body_that_always_loses():
    """It gives up with an error, after a bounded number of tries, and nothing is left."""
    store = overtaken("RETRY", 100)
    with pytest.raises(Conflict, match=f"s3://[^/]+/.*: {LOST_RACES} other writers"):
        write_large(results_over(store), "SUCCESS")
    assert verbs(store).count("COMPLETE") == LOST_RACES + 1
    assert store.uploads == {}


def test_conflict_at_the_completion():
    """A completion that met another one at the same moment (409) is made anew."""
    store = MemoryStore()
    store.faults.append(Fault(Conflict("at the same time"), "COMPLETE"))
    assert write_large(results_over(store), "SUCCESS") is WRITTEN
    assert verbs(store).count("CREATE") == 2


def test_answer_lost_at_the_completion():
    """A completion whose answer is lost has landed, and is final as any other."""
    store = MemoryStore()
    results = results_over(Retrying(store, sleep=lambda seconds: None))
    store.faults.append(Fault(Interrupted("reset"), "COMPLETE", landed=True))
    assert write_large(results, "SUCCESS") is WRITTEN
    assert write(results, "FAILURE") is KEPT
    assert verbs(store).count("CREATE") == 1


# -- several writers, in every order


class Interleaved:
    """Writers that run in greenlets and stop before each request, until it is their turn."""

    def __init__(self, *plans):
        self.history = []
        self.store = MemoryStore(before=lambda verb, key: greenlet.getcurrent().parent.switch())
        self.outcomes = [[] for _ in plans]
        self._writers = [greenlet.greenlet(lambda n=n, plan=plan: self._work(n, plan)) for n, plan in enumerate(plans)]

    def _work(self, number, plan):
        results = results_over(self.store)
        for step, state in enumerate(plan):
            if state == "forget":
                results.delete(KEY)
            else:
                outcome = write(results, state, f"{state} {number}.{step}".encode())
                self.outcomes[number].append((state, outcome))

    def run(self, turns):
        """Give each turn to the writer of that number; who is left over runs at the end."""
        for turn in itertools.chain(turns, itertools.cycle(range(len(self._writers)))):
            alive = [writer for writer in self._writers if not writer.dead]
            if not alive:
                return self
            writer = self._writers[turn]
            if not writer.dead:
                writer.switch()
                found = self.store._objects.get(KEY)
                self.history.append(found and (found.metadata["state"], found.body))
        raise AssertionError("never")

    @property
    def standing(self):
        return self.history[-1]


TURNS = list(itertools.product((0, 1), repeat=9))
PLANS = {
    "success against a late failure": (["SUCCESS"], ["FAILURE"]),
    "a duplicate": (["STARTED", "SUCCESS"], ["STARTED", "SUCCESS"]),
    "a lost worker": (["STARTED", "SUCCESS"], ["FAILURE"]),
    "a retry elsewhere": (["STARTED", "RETRY"], ["STARTED", "SUCCESS"]),
    "revoked while it runs": (["STARTED", "SUCCESS"], ["REVOKED"]),
    "progress against the end": (["PROGRESS", "PROGRESS"], ["SUCCESS"]),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_order_of_two_writers(name):
    """However two writers' requests interleave, a SUCCESS that was stored stays, and exactly one is."""
    plans = PLANS[name]
    for turns in TURNS:
        world = Interleaved(*plans).run(turns)
        first = next(step for step, found in enumerate(world.history) if found and found[0] == "SUCCESS")
        assert len(set(world.history[first:])) == 1, turns
        written = [outcome for outcomes in world.outcomes for outcome in outcomes if outcome == ("SUCCESS", WRITTEN)]
        assert len(written) == 1, turns
        assert [len(outcomes) for outcomes in world.outcomes] == [len(plan) for plan in plans]


@pytest.mark.parametrize("plans", [(["FAILURE"], ["FAILURE"]), (["STARTED", "FAILURE"], ["PROGRESS"])])
def test_without_success_the_last_write_stands(plans):
    """Among other states the one that was written last stands, and each write ends."""
    for turns in TURNS:
        world = Interleaved(*plans).run(turns)
        assert world.standing is not None
        assert all(outcome is WRITTEN for outcomes in world.outcomes for _, outcome in outcomes)


def test_forgetting_among_writers():
    """A forget in between deletes; whatever is stored after it obeys the same rule."""
    followed = 0
    for turns in TURNS:
        world = Interleaved(["STARTED", "SUCCESS"], ["forget", "FAILURE"]).run(turns)
        runs = [list(run) for gone, run in itertools.groupby(world.history, lambda found: found is None) if not gone]
        for run in runs:
            states = [state for state, _ in run]
            if "SUCCESS" in states:
                assert set(states[states.index("SUCCESS") :]) == {"SUCCESS"}
                followed += states[-2:] == ["SUCCESS", "SUCCESS"]
    assert followed


STATES = ["STARTED", "RETRY", "FAILURE", "SUCCESS", "REVOKED", "PROGRESS"]
PLAN = st.lists(st.sampled_from(STATES), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.tuples(PLAN, PLAN, PLAN), st.lists(st.integers(0, 2), max_size=25))
def test_three_writers(plans, turns):
    """Three writers with any plans: a SUCCESS is stored at most once and stays; without forget nothing vanishes."""
    world = Interleaved(*plans).run(turns)
    stored = [found for found in world.history if found]
    states = [state for state, _ in stored]
    if "SUCCESS" in states:
        assert len(set(stored[states.index("SUCCESS") :])) == 1
    assert any("SUCCESS" in plan for plan in plans) == ("SUCCESS" in states)
    assert None not in world.history[world.history.index(stored[0]) :]


# -- reading


def test_read_is_one_get():
    """A small object comes whole with one GET; nothing is answered with nothing."""
    store = MemoryStore()
    results = results_over(store)
    assert results.read(KEY) is None
    store.put(KEY, b"body")
    found = results.read(KEY)
    assert results.whole(found) == Whole(found, b"body")
    assert verbs(store) == ["GET", "PUT", "GET"]


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, HEAD_BYTES + PART_BYTES + 1])
def test_sizes(size):
    """Objects of any size come as they were stored, in one GET, and one for each further part."""
    store, body = MemoryStore(), bytes(range(256)) * (size // 256 + 1)
    store.put(KEY, body[:size])
    results = results_over(store)
    assert results.whole(results.read(KEY)).body == body[:size]
    assert verbs(store).count("GET") == 1 + -(-max(0, size - HEAD_BYTES) // PART_BYTES)


def test_a_preamble_is_kept_apart():
    """What stands before raw bytes is not mixed with them, so that they need not be copied; whatever its size."""
    store = MemoryStore()
    results = results_over(store)
    for notes in (b"{}", b"{" + b" " * HEAD_BYTES + b"}"):
        preamble, value = raw.preamble(notes, "application/json"), bytes(range(256)) * 40_000
        store.put(KEY, preamble + value)
        whole = results.whole(results.read(KEY))
        assert (whole.preamble + whole.body, whole.about.size) == (preamble + value, len(preamble + value))
        assert whole.preamble == (preamble if notes == b"{}" else b"")


def test_a_body_is_taken_once():
    """Whoever takes a body is the only one who has it."""
    store = MemoryStore()
    store.put(KEY, b"x" * 100_000)
    whole = results_over(store).whole(results_over(store).read(KEY))
    assert (len(whole.pop_body()), whole.body) == (100_000, b"")


def test_parts_that_come_in_any_order():
    """The parts of a large object find their places in whatever order they come."""
    store, body = MemoryStore(), random.Random(1).randbytes(5 * PART_BYTES)
    store.put(KEY, body)

    class Backwards:
        def stream(self, fn, items, *, at_once):
            assert at_once == AT_ONCE
            return ((item, fn(item)) for item in reversed(items))

    results = results_over(store)
    results.pool = Backwards()
    assert results.whole(results.read(KEY)).body == body


def test_replaced_while_it_is_read():
    """An object that is replaced before its rest is read comes whole, in one version."""
    store = MemoryStore()
    results = results_over(store)
    for number, replaced in enumerate((b"b" * 100_000, b"small", b"c" * HEAD_BYTES)):
        store.put(KEY, b"a" * 200_000)
        found = results.read(KEY)
        store.put(KEY, replaced)
        assert results.whole(found).body == replaced, number
    store.put(KEY, b"a" * 200_000)
    found = results.read(KEY)
    store.delete(KEY)
    assert results.whole(found) is None


@pytest.mark.parametrize("supported", [True, False])
def test_gone_while_its_state_is_read(supported):
    """What is forgotten while its state is read is not taken for what cannot be read: the failure is stored."""
    store = MemoryStore(conditional=supported)
    results = results_over(store, supported)
    store.put(KEY, b"x" * 100_000)
    whole = results.whole

    def forget_first(found):
        store.delete(KEY)
        return whole(found)

    results.whole = forget_first
    assert write(results, "FAILURE") is WRITTEN
    assert stands(store) == "FAILURE"


def test_parts_that_are_always_refused():
    """Where every part is said to be of another version, reading ends with an error that names the key."""
    store = MemoryStore()
    store.put(KEY, b"x" * 100_000)
    results = results_over(store)
    found, get = results.read(KEY), store.get

    def refuse(key, **options):
        if options.get("if_match"):
            raise PreconditionFailed(operation="get", key=key, status=412)
        return get(key, **options)

    store.requests.clear()
    store.get = refuse
    with pytest.raises(Conflict, match=f"{KEY}.*refused {1 + LOST_RACES} times"):
        results.whole(found)
    assert len(store.requests) == 1 + LOST_RACES


def test_parts_are_retried_as_long_as_their_reader_waits():
    """The threads that read the parts have the bound of the thread that wants them."""
    store, bounds = MemoryStore(), []
    store.put(KEY, b"x" * (3 * PART_BYTES))
    results, get = results_over(store), store.get
    results.pool = Pool(3)
    found = results.read(KEY)

    def noting(key, **options):
        bounds.append((threading.current_thread(), deadline.remaining()))
        return get(key, **options)

    store.get = noting
    with deadline.retried_until(time.monotonic() + 60):
        results.whole(found)
    assert all(50 < bound <= 60 for _, bound in bounds) and len(bounds) == 3
    assert threading.current_thread() not in {thread for thread, _ in bounds}
    results.pool.close()


def test_read_error_is_raised():
    """What the store raises is raised, not read as missing."""
    store = MemoryStore()
    store.faults.append(Fault(Throttled("slow down"), "GET"))
    with pytest.raises(StoreError):
        results_over(store).read(KEY)


@pytest.mark.parametrize(
    ("expires", "age", "there"), [(60, 60.9, True), (60, 61, False), (None, 1e9, True), (0, 1e9, True)]
)
def test_expiry(expires, age, there):
    """A result lives to the end of the second that `expires` says; None and 0 are for ever."""
    store = MemoryStore(clock=lambda: 1000.9)
    store.put(KEY, b"x")
    assert (results_over(store, expires=expires, now=lambda: 1000 + age).read(KEY) is not None) == there


@pytest.mark.parametrize("supported", [True, False])
def test_expired_success_is_replaced(supported):
    """An expired SUCCESS is no SUCCESS any more."""
    store = MemoryStore(clock=lambda: 1000, conditional=supported)
    results = results_over(store, supported, expires=60, now=lambda: 2000)
    write(results, "SUCCESS")
    assert write(results_over(store, supported, expires=60, now=lambda: 2000), "FAILURE") is WRITTEN


@pytest.mark.parametrize("supported", [True, False])
def test_living_success_by_the_servers_clock(supported):
    """Where this clock is ahead by more than results live, a SUCCESS that lives stays: the server is asked."""
    store = MemoryStore(clock=lambda: 1000, conditional=supported)
    write(results_over(store, supported), "SUCCESS")
    asked = []

    def server(now):
        return lambda: asked.append(now) or now

    def late(now, server_now):
        return results_over(store, supported, expires=60, now=lambda: now, server_now=server(server_now))

    assert write(late(1500, 1030), "REVOKED") is KEPT
    assert (stands(store), asked) == ("SUCCESS", [1030])
    assert write(late(1030, 9000), "REVOKED") is KEPT
    assert asked == [1030]
    assert write(late(1500, 1061), "FAILURE") is WRITTEN
    write(results_over(store, supported), "SUCCESS")
    assert write(late(1061 + 900, 0), "FAILURE") is WRITTEN
    assert asked == [1030, 1061]
