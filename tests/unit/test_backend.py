"""Celery's hooks over a bucket in memory: what they hand over, and what they answer with."""

from __future__ import annotations

import ast
import inspect
import io
import logging
import pickle
import threading
import uuid

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import BackendGetMetaError, BackendStoreError, TimeoutError
from celery.signals import worker_ready
from kombu.exceptions import EncodeError, OperationalError

from celery_s3 import S3File
from celery_s3.backends import s3
from celery_s3.celery_private import ResultBackend
from celery_s3.errors import (
    AccessDenied,
    BucketMissing,
    Interrupted,
    PreconditionFailed,
    ResultNotRead,
    ResultNotStored,
    Throttled,
    Unreachable,
    UnreadableResult,
)
from celery_s3.metadata import files_in
from celery_s3.store.deadline import patience, remaining
from celery_s3.store.memory import Fault


@pytest.fixture
def make(store):
    """``make(**conf)``: a backend over the bucket in memory."""
    apps = []

    def backend(**conf):
        app = Celery("unit", set_as_current=False, broker="memory://")
        app.conf.update({"result_backend": "celery_s3.backends.S3Backend", "s3_bucket": "memory", **conf})
        apps.append(app)
        return app.backend

    yield backend
    for app in apps:
        app.close()


def test_nothing_connects_when_it_is_made(make, store):
    """Making the backend, naming it and pickling it asks for nothing: the worker's banner does it before the fork."""
    backend = make()
    assert backend.as_uri().startswith("celery-s3://memory/")
    assert pickle.dumps(backend)
    assert store.requests == []


def test_what_celery_is_told(make):
    """The flags that Celery decides by: persistent, a native join, a cleanup, no counters, thread-safe, telling."""
    backend = make()
    assert (backend.persistent, backend.supports_native_join, backend.supports_autoexpire) == (True, True, False)
    assert (backend.implements_incr, backend.thread_safe, backend.is_async) == (False, True, True)


@pytest.mark.parametrize("id", ["plain", "a//b", b"bytes", uuid.UUID(int=7)])
def test_celery_and_we_make_the_same_key(make, store, id):
    """Celery's hooks name the key where a result or a group stands, whatever kind of id it has."""
    backend = make(s3_base_path="base-", result_backend_transport_options={"global_keyprefix": "blue"})
    backend.store_result(id, 1, "SUCCESS")
    assert store.requests == [("PUT", f"base-{backend.get_key_for_task(id)}")]
    assert backend.get_task_meta(id)["result"] == 1
    assert f"base-{backend.get_key_for_group(id)}" == backend.layout.group_key(id)


def test_overridden_hooks_are_celerys():
    """What is overridden is there to override in this Celery: a hook that is renamed would never be called."""
    later = {"task_result_exists", "prepare_compression"}  # Celery 5.7
    own = {
        "_full",
        "_changed",
        "_open_chords",
        "_open_results",
        "_prefixes",
        "_server_now",
        "close",
        "lifecycle_rules",
        "sweep",
        "watch",
    }
    public_names = {name for name in vars(ResultBackend) if not name.startswith("_")}
    for cls, extra in ((s3.S3Backend, own | later | public_names), (ResultBackend, public_names)):
        hooks = {name for name in vars(cls) if callable(getattr(cls, name)) and not name.startswith("__")}
        assert {name for name in hooks - extra if not hasattr(KeyValueStoreBackend, name)} == set()


def test_the_key_value_verbs(make, store):
    """The verbs of Celery's base class read, write and delete under the base path."""
    backend = make(s3_base_path="base-")
    backend.set("one", "text")
    backend.set(b"two", b"bytes")
    assert (backend.get("one"), backend.get(b"two"), backend.get("three")) == (b"text", b"bytes", None)
    assert backend.mget(["two", "three", b"one"]) == [b"bytes", None, b"text"]
    backend.delete("one")
    assert backend.get("one") is None
    assert store.requests[0] == ("PUT", "base-one")


def test_encode_error_reaches_celery(make, store):
    """A value that cannot be encoded raises kombu's EncodeError, which the worker turns into a FAILURE."""
    with pytest.raises(EncodeError):
        make().store_result("id", object(), states.SUCCESS)
    assert store.requests == []


@pytest.mark.parametrize("error", [Throttled("x"), Interrupted("x"), AccessDenied("x"), BucketMissing("x")])
def test_errors_are_celerys(make, store, error):
    """What the store raises reaches Celery as its own kind of error, with the cause, and never as OperationalError."""
    backend = make()
    store.faults.append(Fault(error, times=-1))
    with pytest.raises(BackendStoreError) as caught:
        backend.store_result("job", 1, states.SUCCESS)
    assert (caught.value.task_id, caught.value.state, caught.value.__cause__) == ("job", "SUCCESS", error)
    assert not isinstance(caught.value, OperationalError)
    for read in (backend.get_task_meta, backend.task_result_exists, backend.restore_group, backend.get_state):
        with pytest.raises(BackendGetMetaError) as caught:
            read("job")
        assert (caught.value.task_id, caught.value.__cause__) == ("job", error)
    with pytest.raises(BackendGetMetaError):
        list(backend.get_many(["job", "other"], timeout=5))


@pytest.mark.parametrize(
    ("error", "safe"),
    [
        (ResultNotStored("x"), Throttled("x")),
        (ResultNotRead("x"), Interrupted("x")),
        (ResultNotStored("x"), None),
        (ResultNotRead("x"), AccessDenied("x")),
        (UnreadableResult("x"), ValueError("x")),
        (Throttled("x"), None),
        (KeyError("x"), None),
    ],
)
def test_exception_safe_to_retry(make, error, safe):
    """`result_backend_always_retry` tries again what may pass, and nothing else."""
    error.__cause__ = safe
    assert make().exception_safe_to_retry(error) == isinstance(safe or error, (Throttled, Interrupted))


@pytest.mark.parametrize(
    "error",
    [Unreachable("away"), Interrupted("lost"), AccessDenied("no"), BucketMissing("gone"), PreconditionFailed("a race")],
)
@pytest.mark.parametrize("state", [states.STARTED, states.RETRY, "PROGRESS"])
def test_no_task_fails_because_of_a_passing_state(make, store, caplog, state, error):
    """STARTED, PROGRESS and RETRY that cannot be stored are a warning: what comes after them replaces them anyway."""
    backend = make()
    store.faults.append(Fault(error, "PUT", times=20))
    with caplog.at_level(logging.WARNING):
        assert backend.store_result("id", {"done": 1}, state) == {"done": 1}
    assert f"{state} of task id was not stored" in caplog.text
    store.faults.clear()
    backend.store_result("id", 1, states.SUCCESS)
    assert backend.get_result("id") == 1


def test_who_tells_its_progress_from_many_threads(make, store):
    """Threads of one task whose states overtake each other do no harm to it."""
    backend, failed = make(), []
    start = threading.Barrier(8)

    def tell(number):
        start.wait()
        try:
            for step in range(5):
                backend.store_result("id", {"thread": number, "step": step}, "PROGRESS")
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert backend.get_state("id") == "PROGRESS"


@pytest.mark.parametrize("state", [states.STARTED, states.SUCCESS])
def test_what_is_wrong_with_a_state_itself_is_told(make, state):
    """A value that cannot be encoded, and an id that no key can be made of, are errors in each state."""
    with pytest.raises(EncodeError):
        make().store_result("id", object(), state)
    with pytest.raises(ResultNotStored):
        make().store_result("x" * 2000, 1, state)


@pytest.mark.parametrize(
    ("state", "request_", "seconds"),
    [
        (states.SUCCESS, Context(), 3600),
        (states.FAILURE, None, 3600),
        (states.REVOKED, None, 3600),
        (states.SUCCESS, Context(is_eager=True), None),
        (states.STARTED, Context(), None),
        (states.RETRY, Context(), None),
    ],
)
def test_for_how_long_a_state_is_tried(make, state, request_, seconds):
    """A final state has `outage_patience`, any other 3 s; that of an eager task is waited for by its caller."""
    backend, seen = make(), []
    write = backend.results.write
    backend.results.write = lambda *args, **how: seen.append((patience(), remaining())) or write(*args, **how)
    backend.store_result("id", ValueError() if state in states.EXCEPTION_STATES else 1, state, request=request_)
    ((patient, left),) = seen
    assert patient is None if seconds is None else seconds - 10 < patient <= seconds
    assert (left is not None and 2 < left <= 3) == (state not in states.READY_STATES)


def test_reads_by_keyword(make):
    """The lost-worker check of Celery names the argument."""
    assert make()._get_task_meta_for(task_id="x")["status"] == "PENDING"


def test_lost_worker_check(make):
    """A FAILURE that the main process writes for a child it believes lost leaves the child's SUCCESS as it is."""
    backend = make()
    backend.mark_as_done("job", 7)
    backend.mark_as_failure("job", RuntimeError("lost"))
    assert backend._get_task_meta_for(task_id="job")["result"] == 7


@pytest.mark.parametrize("conf", [{}, {"result_cache_max": 2}])
def test_remembered_results_in_threads(make, conf):
    """A small cache that other threads push results out of never fails a join."""
    backend = make(**conf)
    ids = [str(number) for number in range(12)]
    for id in ids:
        backend.store_result(id, id, states.SUCCESS)
    errors = []

    def join():
        try:
            for _ in range(60):
                assert len(dict(backend.get_many(ids, timeout=60))) == len(ids)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_pushed_out_while_it_is_looked_up(make):
    """A result that leaves the cache in the moment of the look-up is fetched."""
    backend = make(result_cache_max=2)
    backend.store_result("job", 7, states.SUCCESS)

    class Leaky(dict):
        def __getitem__(self, name):
            raise KeyError(name)

    backend._cache = backend.waiter.known = Leaky(job={"status": "SUCCESS", "result": 6})
    assert [meta["result"] for _, meta in backend.get_many(["job"], timeout=0)] == [7]


def test_other_ready_states(make):
    """``get_many`` takes a caller's own idea of what is ready."""
    backend = make()
    backend.store_result("job", {"done": 1}, "PROGRESS")
    found = backend.get_many(["job"], timeout=0, READY_STATES=frozenset({"PROGRESS"}))
    assert [meta["result"] for _, meta in found] == [{"done": 1}]
    with pytest.raises(TimeoutError):
        list(backend.get_many(["job"], timeout=0))


def test_nothing_of_a_secret(make, store, caplog):
    """Neither messages nor reprs of the backend hold the keys."""
    secret = "a-very-secret-key"
    backend = make(s3_access_key_id="AKIDOFTHETEST", s3_secret_access_key=secret)
    store.put("celery-task-meta-job", b"garbage")
    with caplog.at_level(logging.DEBUG):
        backend.store_result("job", ValueError("x"), states.FAILURE)
        with pytest.raises(UnreadableResult) as caught:
            backend.get_task_meta("job")
    texts = (str(caught.value), repr(caught.value), caplog.text, repr(vars(backend)), str(pickle.dumps(backend)))
    assert not [text for text in texts if secret in text or "AKIDOFTHETEST" in text]


def test_files_are_counted_once_they_are_uploaded(make, store):
    """A result tells in its metadata how many files there are in it, which are uploaded while it is encoded."""
    make().store_result("job", [S3File(io.BytesIO(b"one")), S3File(io.BytesIO(b"two"))], states.SUCCESS)
    assert files_in(store.get("celery-task-meta-job").metadata) == 2


def test_closed(make, store):
    """A closed backend does nothing later: its timers are dropped, and no worker that starts wakes it."""
    backend = make()
    for timer in (backend.mender._later, backend.mending._later):
        timer(60, lambda: None)
    backend.close()
    worker_ready.send(sender="here")
    assert backend.mender._later._entries.peek()._heap == backend.mending._later._entries.peek()._heap == []
    assert store.requests == []


def test_hooks_hand_over():
    """The backend has one base class, Celery's, and each hook is one to three statements that hand over to a room."""
    assert s3.S3Backend.__bases__ == (ResultBackend,)
    tree = ast.parse(inspect.getsource(s3.S3Backend))
    hooks = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and hasattr(ResultBackend, node.name)]
    sizes = {
        hook.name: sum(isinstance(one, ast.stmt) for one in ast.walk(hook)) - 1 - bool(ast.get_docstring(hook))
        for hook in hooks
    }
    assert {name: size for name, size in sizes.items() if size > 3 and name != "__init__"} == {}
