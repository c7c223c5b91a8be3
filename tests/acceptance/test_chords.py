"""Chords on a real prefork worker, the same canvas beside them on Celery's Redis backend: what that returns, we do."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
import uuid
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

import celery
import chord_tasks
import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as NoResult
from celery.result import result_from_tuple

from celery_s3.dev.process import environment, wait_until
from celery_s3.errors import AccessDenied
from devtools.proxy import Proxy

# Celery before 5.7's own Redis backend
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

CELERY = tuple(int(number) for number in celery.__version__.split(".")[:2])
TASKS = Path(chord_tasks.__file__)
#: Seconds that an answer may take; only a hang takes them.
SOON = 30


class Side:
    """An app, its tasks, and workers on it."""

    def __init__(self, folder, conf, run_celery=None):
        self.folder = folder
        self.run_celery = run_celery
        self.conf = {"task_default_queue": f"chords-{uuid.uuid4().hex[:12]}", **conf}
        self.app = Celery(self.conf["task_default_queue"], set_as_current=False)
        self.app.conf.update(self.conf)
        self.tasks = chord_tasks.register(self.app)
        self.app.finalize()
        self.workers = []

    def start(self, *args, **env):
        """Start a worker with two processes; its number."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        command = ["-A", TASKS.stem, "worker", "--loglevel=INFO", "--concurrency=2"]
        command += [f"--hostname={log.stem}@localhost", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        path = os.pathsep.join([str(TASKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = "PYTHONPATH" in env  # another Celery
        env = {"PYTHONPATH": path, **env, "CELERY_S3_TEST_CONF": json.dumps(self.conf), "C_FORCE_ROOT": "1"}
        process = self.run_celery([*command, *args], log, environment(**env), self.folder, own)
        self.workers.append((process, log))
        assert wait_until(lambda: " ready." in log.read_text(), process, 30), log.read_text()
        return process

    @property
    def log(self):
        return "".join(log.read_text(errors="replace") for _, log in self.workers)

    def received(self, result):
        """How often the task has arrived at a worker."""
        return self.log.count(f"[{result.id}] received")

    def stop(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # results say good-bye to Redis, and connections of the pools end
        for process, _ in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if hasattr(self.app.backend, "close"):
            self.app.backend.close()
        self.app.close()


@pytest.fixture(scope="module")
def side_on(tmp_path_factory, run_celery):
    """``side_on(server, **conf)``: a side with our backend; it ends with the module."""
    with ExitStack() as stack:

        def make(server=None, worker=True, **conf):
            if server is not None:
                settings = server.settings() | {"base_path": f"chords-{uuid.uuid4().hex[:12]}/"}
                settings |= conf.pop("s3_backend_settings", {})
                conf = {"result_backend": "celery_s3.backends.S3Backend", "s3_backend_settings": settings, **conf}
            side = Side(tmp_path_factory.mktemp("side"), conf, run_celery)
            stack.callback(side.stop)
            if worker:
                side.start()
            return side

        yield make


@pytest.fixture(scope="module")
def ours(side_on, seaweed, redis_url):
    return side_on(seaweed, broker_url=redis_url)


@pytest.fixture(scope="module")
def redis(side_on, redis_url):
    return side_on(broker_url=redis_url, result_backend=f"{redis_url.removesuffix('0')}1")


# -- the same canvas on both

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


def _of(size):
    return lambda t: chord([t.add.si(number) for number in range(size)], t.echo.s())


CASES |= {f"list_of_{size}": _of(size) for size in (1, 2, 31, 32, 33, 65)}
CASES |= {
    "group": lambda t: chord(group(t.add.si(n) for n in range(4)), t.echo.s()),
    "generator": lambda t: chord((t.add.si(n) for n in range(40)), t.echo.s()),
    "tuple": lambda t: chord((t.add.si(1), t.add.si(2)), t.echo.s()),
    "upgraded": lambda t: group(t.add.si(n) for n in range(5)) | t.total.s(),
    "upgraded_in_a_chain": lambda t: t.add.si(1) | group(t.add.s(n) for n in range(5)) | t.total.s() | t.add.s(1),
    "empty": lambda t: chord([], t.echo.s()),
    "chains": lambda t: chord([chain(t.add.si(1), t.add.s(5)), chain(t.add.si(2), t.add.s(6), t.add.s(7))], t.echo.s()),
    "chain_that_ends_in_a_group": lambda t: chord(
        [t.add.si(7), chain(t.add.si(1), group(t.add.s(2), t.add.s(3))), t.add.si(2)], t.echo.s()
    ),
    "nested_group": lambda t: chord(
        [t.add.si(1), group(t.add.si(2), t.add.si(3), t.add.si(9)), t.add.si(4)], t.echo.s()
    ),
    "deeply_nested_groups": lambda t: chord(
        [group(t.add.si(1), group(t.add.si(2), t.add.si(3)), t.add.si(4)), group(t.add.si(5))], t.echo.s()
    ),
    "group_of_groups": lambda t: chord(
        group(group(t.add.si(1), t.add.si(2)), group(t.add.si(3), t.add.si(4))), t.echo.s()
    ),
    "generator_of_groups": lambda t: chord((group(t.add.si(n), t.add.si(n + 1)) for n in range(3)), t.echo.s()),
    "generator_of_chains": lambda t: chord((chain(t.add.si(n), t.add.s(n)) for n in range(3)), t.echo.s()),
    "nested_chord": lambda t: chord([chord([t.add.si(1), t.add.si(2)], t.total.s()), t.add.si(7)], t.echo.s()),
    "nested_chords": lambda t: chord(
        [chord([t.add.si(1), chord([t.add.si(2), t.add.si(3)], t.total.s())], t.total.s()), t.add.si(7)], t.echo.s()
    ),
    "chord_that_ends_in_a_group": lambda t: chord(
        [chord([t.add.si(1), t.add.si(2)], group(t.echo.s(), t.total.s())), t.add.si(7)], t.echo.s()
    ),
    "only_nested_chords": lambda t: chord(
        [chord([t.add.si(n), t.add.si(n)], t.total.s()) for n in range(3)], t.echo.s()
    ),
    "body_is_a_chain": lambda t: chord([t.add.si(1), t.add.si(2)], chain(t.total.s(), t.add.s(10), t.echo.s())),
    "body_is_a_group": lambda t: chord([t.add.si(1), t.add.si(2)], group(t.total.s(), t.echo.s())),
    "body_is_a_chord": lambda t: chord([t.add.si(1), t.add.si(2)], chord([t.total.s(), t.echo.s()], t.echo.s())),
    "body_is_a_chain_with_a_group": lambda t: chord(
        [t.add.si(1), t.add.si(2)], chain(t.total.s(), group(t.add.s(1), t.add.s(2)))
    ),
    "body_is_a_chain_with_a_chord": lambda t: chord(
        [t.add.si(1), t.add.si(2)], chain(t.total.s(), group(t.add.s(1), t.add.s(2)), t.echo.s())
    ),
    "chords_in_a_chain": lambda t: chain(
        group(t.add.si(1), t.add.si(2)), t.total.s(), group(t.add.s(1), t.add.s(2)), t.total.s(), t.add.s(1)
    ),
    "chord_after_a_task": lambda t: chain(t.add.si(4), chord([t.add.s(1), t.add.s(2)], t.echo.s())),
    "replaced": lambda t: chord([t.becomes.si(1), t.add.si(5, 5)], t.echo.s()),
    "replaced_by_a_group": lambda t: chord([t.becomes_group.si(1), t.add.si(5, 5)], t.echo.s()),
    "replaced_by_a_chord": lambda t: chord([t.becomes_chord.si(1), t.add.si(5, 5)], t.echo.s()),
    "retried": lambda t: chord([t.flaky.si(1), t.add.si(5, 5)], t.echo.s()),
    "results_of_all_kinds": lambda t: chord(
        [t.echo.si(value) for value in (None, "", "ä€", 0, 1.5, True, [], [[1], {"a": [None]}], {"b": "c"})], t.echo.s()
    ),
    "large_values": lambda t: chord([t.big.si(size) for size in (10, 5_000, 100_000, 4_096)], t.echo.s()),
    "immutable_body": lambda t: chord([t.add.si(1), t.add.si(2)], t.echo.si("alone")),
    "a_member_fails": lambda t: chord([t.add.si(1), t.fail.si(), t.add.si(2)], t.echo.s()),
    "another_error": lambda t: chord([t.fail_key.si(), t.add.si(2)], t.echo.s()),
    "all_members_fail": lambda t: chord([t.fail.si(), t.fail.si()], t.echo.s()),
    "a_chain_in_it_fails": lambda t: chord([chain(t.fail.si(), t.add.s(1)), t.add.si(2)], t.echo.s()),
    "the_body_fails": lambda t: chord([t.add.si(1), t.add.si(2)], t.fail.s()),
    "a_chain_after_it_fails": lambda t: chord([t.fail.si(), t.add.si(2)], t.echo.s()) | t.add.s(1),
    "fails_before_a_chain": lambda t: chord([t.fail.si(), t.add.si(2)], chain(t.echo.s(), t.echo.s())),
    "fails_before_a_chord": lambda t: chord([t.fail.si(), t.add.si(2)], chord([t.echo.s(), t.echo.s()], t.echo.s())),
}
CASES |= {
    "fails_before_a_group": lambda t: chord([t.fail.si(), t.add.si(2)], group(t.echo.s(), t.echo.s())),
    "fails_in_a_group": lambda t: chord([group(t.add.si(1), chain(t.add.si(1), t.fail.si())), t.add.si(2)], t.echo.s()),
    "inner_chord_fails": lambda t: chord([chord([t.add.si(1), t.fail.si()], t.total.s()), t.add.si(7)], t.echo.s()),
    "inner_body_fails": lambda t: chord([chord([t.add.si(1), t.add.si(2)], t.fail.s()), t.add.si(7)], t.echo.s()),
    "rejected": lambda t: chord([t.reject.si(), t.add.si(2)], t.echo.s()),
    "lost": lambda t: chord([t.add.si(1), t.die.si()], t.echo.s()),
    "past_its_time_limit": lambda t: chord([t.add.si(1), t.forever.si().set(time_limit=1)], t.echo.s()),
    "expired": lambda t: chord([t.add.si(1), t.add.si(2).set(expires=-5)], t.echo.s()),
    "adds": lambda t: chord([t.adds.si(1, [5]), t.add.si(5, 5)], t.total.s()),
    "without_results": lambda t: chord([t.quiet.si(n) for n in range(5)], t.echo.s()),
    "some_without_results": lambda t: chord(
        [t.add.si(0).set(ignore_result=True), t.add.si(1), t.quiet.si(7)], t.echo.s()
    ),
}


def failed(what):
    return f"celery.exceptions.ChordError: Dependency ID raised {what}"


UNLUCKY = failed("Unlucky('no luck')")
LOST = "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL) Job: ID.')"
VALUES = {f"list_of_{size}": list(range(1, size + 1)) for size in (1, 2, 31, 32, 33, 65)}
VALUES |= {
    "group": [1, 2, 3, 4],
    "generator": list(range(1, 41)),
    "tuple": [2, 3],
    "upgraded": 15,
    "upgraded_in_a_chain": 21,
    "empty": [],
    "chains": [7, 16],
    "chain_that_ends_in_a_group": [8, [4, 5], 3],
    "nested_group": [2, 10, 4, 3, 5],
    "deeply_nested_groups": [5, 4, 3, 2, 6],
    "group_of_groups": [3, 2, 5, 4],
    "generator_of_groups": [[1, 2], [2, 3], [3, 4]],
    "generator_of_chains": [1, 3, 5],
    "nested_chord": [5, 8],
    "nested_chords": [9, 8],
    "chord_that_ends_in_a_group": [[[2, 3], 5], 8],
    "only_nested_chords": [2, 4, 6],
    "body_is_a_chain": 15,
    "body_is_a_group": [5, [2, 3]],
    "body_is_a_chord": [5, [2, 3]],
    "body_is_a_chain_with_a_group": [6, 7],
    "body_is_a_chain_with_a_chord": [6, 7],
    "chords_in_a_chain": 14,
    "chord_after_a_task": [6, 7],
    "replaced": [101, 10],
    "replaced_by_a_group": [[101, 201], 10],
    "replaced_by_a_chord": [302, 10],
    "retried": [1, 10],
    "results_of_all_kinds": [None, "", "ä€", 0, 1.5, True, [], [[1], {"a": [None]}], {"b": "c"}],
    "large_values": ["x" * size for size in (10, 5_000, 100_000, 4_096)],
    "immutable_body": "alone",
    "a_member_fails": UNLUCKY,
    "another_error": failed("KeyError('no key')"),
    "all_members_fail": UNLUCKY,
    "a_chain_in_it_fails": UNLUCKY,
    "the_body_fails": "chord_tasks.Unlucky: no luck",
    "a_chain_after_it_fails": UNLUCKY,
    "fails_before_a_chain": UNLUCKY,
    "fails_before_a_chord": UNLUCKY,
    "fails_before_a_group": ["chord_tasks.Unlucky: no luck"] * 2,
    "fails_in_a_group": UNLUCKY,
    "inner_chord_fails": failed("ChordError(\"Dependency ID raised Unlucky('no luck')\")"),
    "inner_body_fails": UNLUCKY,
    "rejected": failed("reject requeue=False: not this one"),
    "lost": failed(LOST),
    "past_its_time_limit": failed("TimeLimitExceeded(1)"),
    "expired": failed("TaskRevokedError('expired')"),
    "adds": 17,
    "without_results": [0, 1, 2, 3, 4],
    "some_without_results": [1, 2, 7],
}
#: What ``get()`` raises where that is not the stored error: a chord's caller gets the failed member's own.
NO_LUCK = "chord_tasks.Unlucky: no luck"
RAISED = {
    name: NO_LUCK
    for name in CASES
    if name in ("a_member_fails", "all_members_fail", "inner_body_fails") or name.startswith(("fails_", "a_chain_"))
}
RAISED |= {
    "another_error": "builtins.KeyError: 'no key'",
    "inner_chord_fails": UNLUCKY,
    "rejected": "celery.exceptions.Reject: ('not this one', False)",
    "lost": "billiard.exceptions.WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL) Job: ID.",
    "past_its_time_limit": "billiard.exceptions.TimeLimitExceeded: TimeLimitExceeded(1,)",
    "expired": "celery.exceptions.TaskRevokedError: expired",
}
#: What the Redis backend of Celery 5.7 does otherwise.
DIFFERENT = {
    "generator_of_groups": "gives them flat, in the order of completion; backends that join give them as sent",
    "fails_before_a_chord": "whoever waits for its body waits for ever",
    "inner_chord_fails": "whoever waits for the outer chord waits for ever",
}
if CELERY < (5, 7):
    del CASES["rejected"]  # Celery does not report it
if CELERY < (5, 6):
    VALUES["fails_before_a_group"] = [UNLUCKY] * 2
    RAISED["fails_before_a_group"] = UNLUCKY


def outcome(result, timeout=SOON):
    """The value, or what is stored as the error, without the ids in it."""
    try:
        value = result.get(timeout=timeout, propagate=False)
    except NoResult:
        return "nothing"
    return said(value)


def raised(result, **how):
    """The value that ``get()`` returns to somebody who has just learned of the result, or the error that it raises."""
    fresh = result_from_tuple(result.as_tuple(), app=result.app)
    try:
        return said(fresh.get(timeout=SOON, **how))
    except Exception as exc:
        return said(exc)


def said(value):
    if isinstance(value, list):
        return [said(one) for one in value]
    if isinstance(value, BaseException):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=Job: )\d+", "ID", f"{name}: {value}")
    return value


@pytest.mark.parametrize("name", CASES)
def test_what_redis_returns(ours, request, name):
    """Values, their order and nesting, and errors are those of Celery's own Redis backend; the body is sent once.

    The error that is stored for the body, and the one that its caller's ``get()`` raises: the failed member's own.
    """
    sides = [ours]
    if CELERY >= (5, 7):  # older ones have bugs of their own there
        sides.append(request.getfixturevalue("redis"))
    sent = [CASES[name](side.tasks).apply_async() for side in sides]
    if name in RAISED:
        assert [raised(result) for result in sent] == [RAISED[name]] * len(sides)
    if name in DIFFERENT:
        del sent[1:]
    assert [outcome(result) for result in sent] == [VALUES[name]] * len(sent)
    assert ours.received(sent[0]) <= 1


@pytest.mark.parametrize("groups", [False, True], ids=["of_tasks", "of_tasks_and_groups"])
def test_a_generator_streams(ours, redis, tmp_path, groups):
    """Each task of a generated header is sent as it is made: the first have run when the last ones are generated.

    One that yields a group among tasks is gone through to its end from there on. (Redis joins no such.)
    """
    sides = {"ours": ours} if groups else {"ours": ours, "redis": redis}
    for name, side in sides.items():
        t, path = side.tasks, tmp_path / name

        def header(t=t, path=path):
            for number in range(70):
                if number == 60:
                    wait(lambda: len(lines(path)) > 40)
                yield t.note.si(str(path), f"{number}")
            if groups:
                yield group(t.add.si(1), t.add.si(2))
                yield t.add.si(3)

        expected = [f"{number}" for number in range(70)] + ([[2, 3], 4] if groups else [])
        assert outcome(chord(header(), t.echo.s()).apply_async()) == expected
        assert len(lines(path)) == 70


@pytest.mark.parametrize("how", [{"follow_parents": False}, {"propagate": False}], ids=str)
def test_whose_error(ours, redis, how):
    """Who does not want parents to be followed gets the body's own failure, who wants none raised has it returned."""
    sent = [chord([side.tasks.fail.si()], side.tasks.echo.s()).apply_async() for side in (ours, redis)]
    assert [raised(result, **how) for result in sent] == [UNLUCKY] * 2
    assert [said(result.parent[0].get(propagate=False)) for result in sent] == [NO_LUCK] * 2


# -- callbacks


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def both(ours, tmp_path, request):
    """``both(canvas, expected)``: its outcome, what it raises, and the lines (so many at least) in its file.

    The same on both sides.
    """
    sides = {"ours": ours}
    if CELERY >= (5, 7):  # older ones call fewer errbacks, and leave out causes
        sides["redis"] = request.getfixturevalue("redis")

    def run(canvas, expected):
        found = []
        for name, side in sides.items():
            path = tmp_path / name
            sent = canvas(side.tasks, str(path)).apply_async()
            error, end = raised(sent), outcome(sent)
            deadline = time.monotonic() + SOON
            while len(lines(path)) < expected and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.2)
            found.append((end, error, sorted(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", line) for line in lines(path))))
        assert all(one == found[0] for one in found)
        return found[0]

    return run


def test_links(both):
    """What is linked to a chord and to its members is called with their values."""

    def canvas(t, path):
        members = [t.add.si(1, 1), t.add.si(2, 2)]
        members[0].link(t.note_value.s(path))
        whole = chord(members, t.total.s())
        whole.link(t.note_value.s(path))
        return whole

    assert both(canvas, 2) == (6, 6, ["2", "6"])


@pytest.mark.parametrize("on_header", [False, True])
@pytest.mark.parametrize("failing", ["header", "body"])
def test_link_error(ours, redis, both, on_header, failing, request):
    """Errbacks of both kinds are called as often as on Redis, whether header or body fails."""
    for side in (ours, redis):
        side.app.conf.task_allow_error_cb_on_chord_header = on_header
        request.addfinalizer(lambda side=side: side.app.conf.update(task_allow_error_cb_on_chord_header=False))

    def canvas(t, path):
        whole = chord([t.add.si(1), (t.fail if failing == "header" else t.add).si(2)], t.fail.s())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            whole.link_error(t.note_error.s(path))
            whole.link_error(t.note_failure.s(path=path))
        return whole

    end, error, notes = both(canvas, 2)
    assert notes
    assert error == NO_LUCK
    assert failing == "header" or not end.startswith("celery.exceptions.ChordError")


def test_errbacks_of_a_nested_chord(ours, redis, tmp_path):
    """A member's failure in a nested header calls the outer chord's errback once, and the outer body never runs.

    Celery has linked it to the inner body too, which fails first.
    """
    found = {}
    for name, side in {"ours": ours, "redis": redis}.items():
        t, path = side.tasks, tmp_path / name
        inner = chord([t.echo.si("t1"), t.fail.si()], t.echo.si("t2"))
        whole = chord([t.echo.si("t3"), inner], t.note_value.s(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            whole.link_error(t.note_error.s(str(path)))
        result = whole.apply_async()
        wait(lambda path=path: lines(path))
        if name == "ours":
            wait(result.ready)
        time.sleep(1)
        found[name] = lines(path), side.app.backend.get_state(result.id)
    redis.app.backend._pending_results.concrete.clear()  # nobody waits for them
    assert found["ours"] == (["ChordError: Unlucky"], "FAILURE")
    # on Redis the outer chord waits for ever, and Celery before 5.6 loses the cause
    assert found["redis"] == ([f"ChordError: {'Unlucky' if CELERY >= (5, 6) else 'NoneType'}"], "PENDING")


def test_errbacks_of_a_group_body(both):
    """Each task of a group that is not to come has its errback called."""

    def canvas(t, path):
        tasks = [t.echo.s(), t.echo.s()]
        for task in tasks:
            task.link_error(t.note_failure.s(path=path))
        return chord([t.fail.si(), t.add.si(2)], group(tasks))

    both(canvas, 2)


def test_stamps(ours, redis):
    """Members and body carry the stamps of the canvas."""
    from celery.canvas import StampingVisitor

    class Visitor(StampingVisitor):
        def on_signature(self, sig, **headers):
            return {"batch": "42", "stamped_headers": ["batch"]}

    found = []
    for side in (ours, redis):
        canvas = chord([side.tasks.stamps.si(), side.tasks.add.si(1)], side.tasks.echo.s())
        canvas.stamp(visitor=Visitor())
        found.append(outcome(canvas.apply_async()))
    assert found[0] == found[1]
    assert found[0][0]


# -- applied again, revoked, in other formats


def test_the_same_frozen_signature_twice(ours):
    """A task that stands twice in a header runs twice, and its value stands in both places. Redis waits for ever."""
    same = ours.tasks.add.si(3).clone()
    same.freeze()
    assert outcome(chord([same, ours.tasks.add.si(1), same], ours.tasks.echo.s()).apply_async()) == [4, 2, 4]


def test_a_frozen_chord_applied_again(ours, tmp_path):
    """It is decided, and stays so: its tasks run again, its body does not."""
    path = tmp_path / "notes"
    canvas = chord([ours.tasks.add.si(1), ours.tasks.add.si(2)], ours.tasks.note_value.s(str(path)))
    canvas.freeze()
    first = canvas.apply_async()
    first.get(timeout=SOON)
    canvas.apply_async()
    fence = chord([ours.tasks.add.si(1)], ours.tasks.note_value.s(str(path))).apply_async()
    fence.get(timeout=SOON)
    assert lines(path) == ["[2, 3]", "[2]"]


def test_revoked(ours, redis):
    """A member that is revoked before it runs fails the chord, reported by the worker's main process."""
    ends = []
    for side in (ours, redis):
        waits = side.tasks.add.si(1).set(countdown=2)
        result = chord([waits, side.tasks.add.si(2)], side.tasks.echo.s()).apply_async()
        time.sleep(0.3)
        result.parent[0].revoke()
        ends.append(outcome(result))
    assert ends[0] == ends[1]
    assert "TaskRevokedError" in ends[0]


@pytest.mark.parametrize(
    "conf",
    [
        {"task_serializer": "pickle", "result_serializer": "pickle", "accept_content": ["pickle", "json"]},
        {"task_protocol": 1},
        {"result_compression": "gzip", "task_compression": "gzip"},
        {"result_extended": True, "task_track_started": True},
    ],
    ids=["pickle", "protocol_1", "compressed", "extended"],
)
def test_formats(side_on, seaweed, redis_url, conf):
    """Serializers, the old message protocol, compression: the same values, and exceptions keep their type."""
    side = side_on(seaweed, broker_url=redis_url, **conf)
    t = side.tasks
    names = ["list_of_33", "generator_of_groups", "nested_chord", "body_is_a_chord", "chain_that_ends_in_a_group"]
    sent = {name: CASES[name](t).apply_async() for name in [*names, "replaced", "adds", "a_member_fails"]}
    assert outcome(sent["list_of_33"]) == [n + 1 for n in range(33)]
    assert outcome(sent["generator_of_groups"]) == [[1, 2], [2, 3], [3, 4]]
    assert outcome(sent["nested_chord"]) == [5, 8]
    assert outcome(sent["body_is_a_chord"]) == [5, [2, 3]]
    assert outcome(sent["chain_that_ends_in_a_group"]) == [8, [4, 5], 3]
    assert outcome(sent["replaced"]) == [101, 10]
    assert outcome(sent["adds"]) == 17
    failed = sent["a_member_fails"].get(propagate=False, timeout=SOON)
    assert isinstance(failed, ChordError)


# -- once


class Twice:
    """Publishes each of an app's messages twice, in any order, the second time as a broker delivers again."""

    def __init__(self, app, seed):
        self.app = app
        self.random = random.Random(seed)
        self.held = []
        self.send = app.amqp.send_task_message
        app.amqp.send_task_message = self.hold

    def hold(self, producer, name, message, **options):
        self.held.append((name, message, options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.app.amqp.send_task_message = self.send
        again = [
            (name, message, {**options, "delivery_info": {"redelivered": True}}) for name, message, options in self.held
        ]
        messages = [*self.held, *again]
        self.random.shuffle(messages)
        with self.app.producer_pool.acquire(block=True) as producer:
            for name, message, options in messages:
                self.send(producer, name, message, **options)


@pytest.mark.parametrize("deduplicate", [False, True], ids=["every_delivery_runs", "deduplicated"])
def test_every_header_task_is_delivered_twice(side_on, seaweed, redis_url, tmp_path, deduplicate):
    """In any order, several at a time: each body is sent once, and no error is reported, before it or after."""
    conf = {"task_acks_late": True, "worker_deduplicate_successful_tasks": deduplicate}
    side = side_on(seaweed, broker_url=redis_url, **conf)
    t, expected = side.tasks, {}
    for seed, size in enumerate([1, 2, 3, 32, 33]):
        path = tmp_path / f"notes-{seed}"
        body = t.note_value.s(str(path))
        body.link_error(t.note_error.s(str(path)))
        with Twice(side.app, seed):
            result = chord([t.add.si(n, 0) for n in range(size)], body).apply_async()
        expected[path] = result, list(range(size))
    for result, values in expected.values():
        assert result.get(timeout=SOON) == values
    arrived = 2 * sum(len(values) for _, values in expected.values())
    wait(lambda: side.log.count("Task add[") >= 2 * arrived)
    time.sleep(1)
    for path, (result, values) in expected.items():
        assert lines(path) == [json.dumps(values)]
        assert side.received(result) == 1


def test_a_member_that_fails_the_second_time(ours, tmp_path):
    """A delivery that fails beside one that succeeds: body or error, whichever came first, and never both."""
    t, notes = ours.tasks, []
    for seed in range(8):
        path, mark = tmp_path / f"notes-{seed}", tmp_path / f"mark-{seed}"
        body = t.note_value.s(str(path))
        body.link_error(t.note_error.s(str(path)))
        with Twice(ours.app, seed):
            chord([t.once.si(str(mark), n) for n in (1, 1)] + [t.add.si(1, 0)], body).apply_async()
        notes.append(path)
    for path in notes:
        wait(lambda path=path: lines(path))
    time.sleep(2)
    assert [len(lines(path)) for path in notes] == [1] * len(notes)


def wait(condition, timeout=SOON):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout} s"
        time.sleep(0.05)


# -- what it costs


@pytest.mark.parametrize(("task", "each"), [("add", 2), ("quiet", 1)])
def test_requests_of_64_members(side_on, seaweed, redis_url, task, each):
    """Per member two writes, one where its result is ignored, and 0.04 of summaries; at most four reads; no LIST."""
    with Proxy(seaweed) as proxy:
        side = side_on(proxy, broker_url=redis_url)
        chord([side.tasks.add.si(n) for n in range(4)], side.tasks.count.s()).apply_async().get(timeout=SOON)
        time.sleep(0.5)
        proxy.reset()
        path = side.folder / "done"
        member = getattr(side.tasks, task)
        chord([member.si(n) for n in range(64)], side.tasks.note_value.s(str(path))).apply_async()
        wait(lambda: lines(path))
        time.sleep(1)
        counts = proxy.counts()
    # manifest, claim (created and marked), the body's result; and what is written twice by processes that complete
    # a node at the same moment
    small = 4 + 6
    assert counts["PUT"] <= 64 * (each + 0.04) + small
    assert counts["GET"] <= 64 * 4
    assert counts["LIST"] == counts["HEAD"] == 0
    assert counts["DeleteObjects"] <= 2


def test_thousand_members(ours, seaweed):
    """1,025 members are three levels; the body gets all values in order, and once.

    ``get()`` on it makes at most 40 requests more than on a lone task of that length.
    """
    with Proxy(seaweed) as proxy:
        settings = ours.conf["s3_backend_settings"] | {"endpoint_url": proxy.endpoint_url}
        client = Side(ours.folder, {**ours.conf, "s3_backend_settings": settings})
        # their results are ignored: half the requests, and the parts are what is joined
        result = chord([client.tasks.quiet.si(n) for n in range(1025)], client.tasks.echo.s()).apply_async()
        proxy.reset()
        sent = time.monotonic()
        assert result.get(timeout=60) == list(range(1025))
        length, mine = time.monotonic() - sent, sum(proxy.counts().values())
        assert ours.received(result) == 1
        lone = client.tasks.nap.delay("rested", length)
        proxy.reset()
        assert lone.get(timeout=60) == "rested"
        alone = sum(proxy.counts().values())
        client.stop()
    assert mine <= alone + 40


# -- when the store or the broker stumbles


@pytest.mark.long
@pytest.mark.timeout(150)
def test_an_outage_of_twenty_seconds(side_on, seaweed, redis_url):
    """S3 refuses everything in the midst of chords: their members hold their parts until it is back, each body once."""
    with Proxy(seaweed) as proxy:
        side = side_on(proxy, broker_url=redis_url)
        path = side.folder / "done"
        header = [side.tasks.nap.si(number, 0.05) for number in range(40)]
        bodies = [chord(header, side.tasks.note_value.s(str(path))).apply_async() for _ in range(2)]
        single = chord([side.tasks.nap.si(1, 2)], side.tasks.note_value.s(str(path))).apply_async()
        wait(lambda: side.log.count(" succeeded in ") > 5)
        for verb in ("PUT", "GET", "POST"):
            proxy.fail(verb, "slow_down", times=-1)
        time.sleep(20)
        proxy.heal()
        assert [body.get(timeout=60) for body in bodies] == [list(range(40))] * 2
        assert single.get(timeout=60) == [1]
    assert len(lines(path)) == 3
    assert [side.received(body) for body in (*bodies, single)] == [1, 1, 1]
    assert "Traceback" not in side.log


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_claim_that_cannot_be_marked(side_on, seaweed, redis_url):
    """The body is sent, and S3 refuses the note of it for a while: it is noted then, and nothing is sent again."""
    with Proxy(seaweed) as proxy:
        side = side_on(proxy, broker_url=redis_url)
        path = side.folder / "done"
        proxy.fail("PUT claim", "slow_down", times=-1, after=1)
        body = chord([side.tasks.add.si(1), side.tasks.add.si(2)], side.tasks.note_value.s(str(path))).apply_async()
        wait(lambda: side.received(body))
        time.sleep(12)
        proxy.heal()
        assert body.get(timeout=SOON) == [2, 3]
        claim = side.app.backend.chords.claim(body.parent.id)
        wait(lambda: claim.read().state == "sent")
    assert side.received(body) == 1
    assert "Traceback" not in side.log


# -- where it cannot work


def test_a_body_too_large_for_the_broker(side_on, seaweed, sqs):
    """The chord ends in an error that names the size and the remedy, and an outer chord hears of it."""
    side = side_on(seaweed, **sqs.broker())
    t = side.tasks
    small = chord([t.add.si(n) for n in range(3)], t.echo.s()).apply_async()
    assert small.get(timeout=SOON) == [1, 2, 3]
    inner = chord([t.big.si(60_000) for _ in range(30)], t.echo.s())
    outer = chord([inner, t.add.si(1)], t.echo.s()).apply_async()
    error = outer.get(timeout=SOON, propagate=False)
    assert isinstance(error, ChordError)
    assert "30 values make a message of 1,80" in str(error)
    assert "let the header's tasks store what is large" in str(error)


def test_chosen_by_hand(side_on, seaweed, redis_url):
    """``native_chords: False`` leaves chords to Celery's polling task."""
    side = side_on(seaweed, broker_url=redis_url, result_backend_transport_options={"native_chords": False})
    result = chord([side.tasks.add.si(n) for n in range(3)], side.tasks.echo.s()).apply_async()
    assert result.get(timeout=SOON) == [1, 2, 3]
    assert "celery.chord_unlock" in side.log


def test_a_server_without_conditional_writes(side_on, seaweed, redis_url, caplog):
    """Chords are left to Celery's polling task, with one warning for all of them."""
    with Proxy(seaweed, strip_preconditions=True) as proxy:
        side = side_on(proxy, broker_url=redis_url)
        results = [chord([side.tasks.add.si(n)] * 2, side.tasks.echo.s()).apply_async() for n in range(3)]
        assert [result.get(timeout=SOON) for result in results] == [[1, 1], [2, 2], [3, 3]]
        side.stop()
    assert "celery.chord_unlock" in side.log
    warned = [record for record in caplog.records if "does not keep conditional writes" in record.message]
    assert len(warned) == 1


def test_a_producer_that_may_not_write(side_on, seaweed, redis_url):
    """It is told at ``apply_async``, and nothing is published."""
    with Proxy(seaweed) as proxy:
        side = side_on(proxy, worker=False, broker_url=redis_url)
        assert side.app.backend.results.conditional.supported()
        proxy.fail("PUT", "access_denied", times=-1)
        with pytest.raises(AccessDenied, match="s3:PutObject"):
            chord([side.tasks.add.si(1)], side.tasks.echo.s()).apply_async()
        with side.app.connection_for_write() as connection:
            assert connection.default_channel.client.llen(side.conf["task_default_queue"]) == 0


# -- workers that die


@pytest.mark.timeout(240)
def test_workers_killed_at_random(seaweed, redis_url, tmp_path):
    """Every body is sent, and twice only where its first sender died before it noted that (a round of the soak)."""
    chaos = _soak()
    report = chaos.Round(seaweed, redis_url, tmp_path, seed=random.randrange(10**6)).run(6, (5, 20))
    assert report.problems == [], "".join(log.read_text()[-3000:] for log in tmp_path.glob("*.log"))
    assert report.kills + report.kills_of_children


def _soak():
    spec = importlib.util.spec_from_file_location("chaos", TASKS.parents[1] / "soak" / "chords.py")
    chaos = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = chaos  # where dataclasses look
    spec.loader.exec_module(chaos)
    return chaos


@pytest.mark.skipif("OTHER_CELERY" not in os.environ, reason="OTHER_CELERY names a directory with another Celery")
def test_two_versions_of_celery_in_one_chord(side_on, seaweed, redis_url):
    """Workers of this Celery and of another one deliver members of the same chords, and either sends the bodies."""
    side = side_on(seaweed, worker=False, broker_url=redis_url)
    side.start()
    side.start(PYTHONPATH=os.pathsep.join([os.environ["OTHER_CELERY"], str(TASKS.parent)]))
    t = side.tasks
    names = [
        "list_of_65",
        "generator_of_groups",
        "nested_chord",
        "body_is_a_chain",
        "body_is_a_chord",
        "inner_chord_fails",
    ]
    sent = {name: CASES[name](t).apply_async() for name in names}
    sent |= {str(n): chord([t.nap.si(n, 0.01) for _ in range(40)], t.echo.s()).apply_async() for n in range(3)}
    assert all(len(sent[str(n)].get(timeout=SOON)) == 40 for n in range(3))
    assert outcome(sent["list_of_65"]) == [n + 1 for n in range(65)]
    assert outcome(sent["generator_of_groups"]) == [[1, 2], [2, 3], [3, 4]]
    assert outcome(sent["nested_chord"]) == [5, 8]
    assert outcome(sent["body_is_a_chain"]) == 15
    assert outcome(sent["body_is_a_chord"]) == [5, [2, 3]]
    assert outcome(sent["inner_chord_fails"]) == VALUES["inner_chord_fails"]
    logs = [log.read_text() for _, log in side.workers]
    assert all("Task add[" in log and " succeeded" in log for log in logs)
    assert len({re.search(r" v(5\.\d+\.\d+)", log)[1] for log in logs}) == 2
