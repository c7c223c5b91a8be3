"""Many reads at a time, never more than allowed, and never a caller that waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextvars import ContextVar

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from celery.exceptions import TimeoutError as CeleryTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_s3.errors import Unreachable
from celery_s3.store.deadline import patient, retried_until
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.retrying import Retrying

#: Python 3.12 warns of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Load:
    """Counts how many calls are under way."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def __call__(self, item: int) -> int:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.current_thread())
        time.sleep(0.005)
        with self._lock:
            self.now -= 1
        return item * 10


@given(st.lists(st.integers()), st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_every_item_once(items, concurrency):
    """`map` keeps the order, the others any; no item is lost or done twice."""
    pool = Pool(concurrency)
    assert pool.map(str, items) == [str(item) for item in items]
    assert sorted(pool.map_unordered(str, items)) == sorted(str(item) for item in items)
    assert sorted(pool.stream(str, items)) == sorted((item, str(item)) for item in items)


def test_no_more_than_the_concurrency():
    """Many at a time, but never more than allowed."""
    load = Load()
    assert Pool(4).map(load, range(40)) == [item * 10 for item in range(40)]
    assert 1 < load.most <= 4


def test_a_caller_does_not_wait_for_anothers_items():
    """Callers whose items hang do not keep a caller waiting whose items do not."""
    pool, release = Pool(4), threading.Event()
    hanging = [threading.Thread(target=pool.map, args=(lambda _: release.wait(30), range(20))) for _ in range(5)]
    for caller in hanging:
        caller.start()
    load = Load()
    assert pool.map(load, range(40)) == [item * 10 for item in range(40)]
    assert 1 < load.most <= 4
    release.set()
    for caller in hanging:
        caller.join()


@pytest.mark.parametrize("how", ["map", "until", "run_both"])
def test_nobody_waits_longer_than_his_deadline(how):
    """Items that hang are waited for until the caller's deadline; those not begun are not begun any more."""
    pool, release, begun = Pool(2), threading.Event(), []

    def hang(item: int) -> None:
        begun.append(item)
        release.wait(30)

    soon, started = time.monotonic() + 0.6, time.monotonic()
    with pytest.raises(CeleryTimeoutError):
        if how == "until":
            list(pool.stream(hang, range(9), until=soon))
        with retried_until(soon):
            if how == "map":
                pool.map(hang, range(9))
            pool.run_both(lambda: hang(0), lambda: hang(1) if how != "run_both" else None)
    assert 0.5 < time.monotonic() - started < 5
    release.set()
    pool.close()
    assert len(begun) <= 2


def test_a_single_item_needs_no_thread():
    """One item is done by the caller itself."""
    load = Load()
    assert Pool(4).map(load, [1]) == [10]
    assert load.threads == {threading.current_thread()}


def test_threads_are_kept():
    """Further calls use the same threads."""
    load, pool = Load(), Pool(3)
    for _ in range(5):
        pool.map(load, range(6))
    assert len(load.threads) <= 3


def test_errors_are_outcomes_of_their_items():
    """`stream` hands errors out, even those that are no `Exception`; the others raise the first."""

    class Panic(BaseException):
        pass

    def fail(item: int) -> int:
        if item == 3:
            raise Panic("3")
        return item

    pool = Pool(2)
    outcomes = dict(pool.stream(fail, range(6)))
    assert isinstance(outcomes.pop(3), Panic)
    assert outcomes == {item: item for item in range(6) if item != 3}
    with pytest.raises(Panic):
        pool.map(fail, range(6))
    with pytest.raises(Panic):
        list(pool.map_unordered(fail, range(6)))
    with pytest.raises(Panic):
        pool.map(fail, [3])


def test_results_come_as_they_are_done():
    """The slowest is the last."""
    release = threading.Event()
    pool = Pool(2)
    stream = pool.stream(lambda item: release.wait(10) if item == 0 else item, range(10))
    assert {next(stream)[0] for _ in range(9)} == set(range(1, 10))
    release.set()
    assert [item for item, _ in stream] == [0]


def test_items_are_taken_as_they_are_needed():
    """An endless supply is taken in portions; closing the iterator takes no more."""
    taken = []

    def supply():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    stream = Pool(4).stream(str, supply())
    for _ in range(10):
        next(stream)
    stream.close()
    count = len(taken)
    assert count <= 10 + 4
    time.sleep(0.02)
    assert len(taken) == count


def test_a_call_from_inside_the_pool():
    """Items that use the pool themselves are served, however full it is."""
    pool = Pool(2)
    assert pool.map(lambda item: sum(pool.map(lambda other: item * other, range(5))), range(8)) == [
        item * 10 for item in range(8)
    ]


def test_after_close_it_works_again():
    """Closing ends the threads, not the pool."""
    pool, load = Pool(3), Load()
    pool.map(load, range(6))
    pool.close()
    assert pool.map(load, range(6)) == [item * 10 for item in range(6)]
    pool.close()
    for thread in load.threads:
        thread.join(5)
        assert not thread.is_alive()


def test_closing_in_the_middle_of_a_stream():
    """A stream that is under way is finished."""
    pool = Pool(2)
    stream = pool.stream(str, range(20))
    next(stream)
    pool.close()
    assert len(list(stream)) == 19


def test_a_pool_that_is_thrown_away_takes_its_threads_along():
    """No thread stays behind for a backend that is gone."""
    pool, load = Pool(3), Load()
    pool.map(load, range(6))
    del pool
    for thread in load.threads:
        thread.join(5)
        assert not thread.is_alive()


def test_nothing_holds_the_items_afterwards():
    """An idle thread does not keep the last item and its result alive."""

    class Big:
        pass

    pool = Pool(2)
    items = [Big() for _ in range(4)]
    references = [weakref.ref(item) for item in items]
    pool.map(lambda item: None, items)
    del items
    deadline = time.monotonic() + 5
    while any(reference() for reference in references) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(reference() for reference in references)


def test_a_forked_child_has_threads_of_its_own():
    """A pool whose threads the fork did not copy works in the child."""
    pool = Pool(3)
    pool.map(str, range(9))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if pool.map(str, range(9)) == [str(item) for item in range(9)] else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_work_under_way_does_not_hold_up_the_exit():
    """An interpreter ends while threads of the pool still wait for a server."""
    code = "import time; from celery_s3.store.parallel import Pool; next(Pool(4).stream(time.sleep, [0, 60, 60]))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_items_that_depend_on_answers(concurrency):
    """Who has no item now is asked again after each answer, and the stream ends once nothing is under way."""
    allowed, given, results = 4, 0, []

    def next_item():
        nonlocal given
        if given >= min(allowed, 10):
            return None
        given += 1
        return given

    for _, result in Pool(concurrency).stream_from(lambda item: item * 2, next_item):
        allowed += 1
        results.append(result)
    assert sorted(results) == [2 * item for item in range(1, 11)]


def test_no_item_at_all():
    """Nothing to begin with is the end."""
    assert list(Pool(4).stream_from(str, lambda: None)) == []


def test_threads_work_in_their_callers_context():
    """What the caller has set is seen there; what is set there is seen by nobody else."""
    place = ContextVar("place", default="")
    pool = Pool(2)

    def leave(item: str) -> str:
        seen = place.get()
        place.set(item)
        return seen

    place.set("caller")
    assert pool.map(leave, "abcd") == ["caller"] * 4
    assert pool.run_both(place.get, place.get) == ("caller", "caller")
    place.set("another")
    assert pool.run_both(place.get, lambda: 0)[0] == "another"


def test_both_without_threads(monkeypatch):
    """Where no thread can be started, both are done here, and later ones find threads again."""
    pool = Pool(2)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            assert pool.run_both(lambda: 1, lambda: 2) == (1, 2)
    assert pool.run_both(threading.get_ident, lambda: 0)[0] != threading.get_ident()


def test_both_raises_what_ends_the_process_first():
    """SystemExit is raised, whatever else went wrong beside it."""

    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Pool(2).run_both(lambda: 1 / 0, leave)


def test_both_is_interrupted():
    """What a signal raises while the other function is waited for comes once that has ended."""
    ended = []

    def slow():
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        time.sleep(0.5)
        ended.append(True)

    def interrupt(*_):
        raise TimeoutError("soft time limit")

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(TimeoutError, match="soft"):
            Pool(2).run_both(slow, lambda: None)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended


@pytest.mark.parametrize("struck", ["here", "waiting"])
def test_both_is_interrupted_in_an_outage(struck):
    """A soft time limit ends both where one of them waits, as patient as can be, for a store that is away."""
    memory = MemoryStore()
    memory.faults.append(Fault(Unreachable(), times=-1))
    store, ended = Retrying(memory, random=lambda: 0.01), threading.Event()

    def beside():
        try:
            store.put("k", b"")
        finally:
            ended.set()

    def limit(*_):
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        with patient(3600), pytest.raises(SoftTimeLimitExceeded):
            Pool(2).run_both(beside, lambda: time.sleep(30) if struck == "here" else None)
        assert ended.wait(10)
    finally:
        signal.signal(signal.SIGUSR1, before)
