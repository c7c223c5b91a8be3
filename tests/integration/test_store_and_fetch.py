"""Every state there and back, and what each costs in requests."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import traceback as tracebacks
import types

import celery
import pytest
from celery import Celery, states
from celery.exceptions import BackendGetMetaError, Ignore, Retry, TaskRevokedError
from celery.result import AsyncResult, EagerResult
from kombu.utils.uuid import uuid

import celery_s3.backends
from celery_s3.errors import ResultNotRead, ResultNotStored

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))


class OutOfStock(Exception):
    """An exception of the application, importable where the result is read."""


class Shop:
    class Closed(Exception):
        """One inside of another class."""


class Picky(Exception):
    """Cannot be made again from its ``args``."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Clingy(Exception):
    """Cannot be pickled."""

    def __init__(self, what):
        super().__init__(what)
        self.lock = threading.Lock()


def add(x, y):
    return x + y


def done():
    return "done"


def raised(exc):
    try:
        raise exc
    except type(exc):
        return tracebacks.format_exc()


# -- states


def test_success(counted, stored, spends):
    """A SUCCESS is stored with one PUT and fetched with one GET, whatever is asked of it afterwards."""
    app = counted()
    with spends(PUT=1):
        result = stored(app, {"answer": 42, "é": [None, 1.5]})
    with spends(GET=1):
        assert result.get(timeout=5) == {"answer": 42, "é": [None, 1.5]}
        assert (result.state, result.successful(), result.traceback, result.children) == ("SUCCESS", True, None, [])
        assert result.date_done.tzinfo is not None
    with spends():
        assert result.get() == result.result


def test_pending(counted, spends):
    """Nothing stored is PENDING, by one GET each time that it is asked."""
    result = counted().AsyncResult(uuid())
    with spends(GET=3):
        assert (result.state, result.ready(), result.result) == ("PENDING", False, None)


@pytest.mark.parametrize(
    "exc", [KeyError("gone"), ValueError("a", 1), OutOfStock("tea", 3), Shop.Closed("it is late"), OSError(2, "x")]
)
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_failure(counted, spends, exc, serializer):
    """A failure comes back as the exception it was, with its arguments and traceback, in one PUT and one GET."""
    app = counted(result_serializer=serializer, result_accept_content=[serializer])
    id, traceback = uuid(), raised(exc)
    with spends(PUT=1):
        app.backend.mark_as_failure(id, exc, traceback)
    result = app.AsyncResult(id)
    with spends(GET=1):
        with pytest.raises(type(exc)) as caught:
            result.get(timeout=5)
        assert caught.value.args == exc.args
        assert result.traceback == traceback
        assert result.failed()
        again = result.get(propagate=False)
        assert (type(again), again.args) == (type(exc), exc.args)


def test_failure_of_a_class_that_is_not_there(counted):
    """An exception whose class cannot be imported comes back by its name, with its message."""
    module = types.ModuleType("a_module_of_the_worker")
    exc = type("Broken", (Exception,), {"__module__": module.__name__})("valve 3")
    sys.modules[module.__name__] = module
    module.Broken = type(exc)
    app, id = counted(), uuid()
    app.backend.mark_as_failure(id, exc)
    del sys.modules[module.__name__]
    error = app.AsyncResult(id).get(propagate=False)
    assert (type(error).__name__, error.args) == ("Broken", ("valve 3",))


@pytest.mark.parametrize(("exc", "text"), [(Picky(1, 2), "1 and 2"), (ValueError(object), "object")])
def test_failure_with_odd_arguments(counted, exc, text):
    """An exception that its arguments do not make again, or that no serializer takes, is still one, and tells."""
    app, id = counted(), uuid()
    app.backend.mark_as_failure(id, exc)
    with pytest.raises(Exception, match=text):
        app.AsyncResult(id).get(timeout=5)


def test_failure_that_cannot_be_pickled(counted):
    """With pickle, an exception that cannot be pickled comes back by its name and message."""
    app, id = counted(result_serializer="pickle", result_accept_content=["pickle"]), uuid()
    app.backend.mark_as_failure(id, Clingy("stuck"))
    error = app.AsyncResult(id).get(propagate=False)
    assert type(error).__name__ == "Clingy"
    assert "stuck" in str(error)


def test_retry_revoked_and_custom_states(counted, spends):
    """RETRY and REVOKED carry their exception, a custom state its meta; each is one PUT, and only REVOKED ends it."""
    app = counted()
    retried, revoked, custom = (app.AsyncResult(uuid()) for _ in range(3))
    with spends(PUT=3):
        app.backend.mark_as_retry(retried.id, OSError("no route"), "Traceback …")
        app.backend.mark_as_revoked(revoked.id, "terminated")
        app.backend.store_result(custom.id, {"done": 5, "of": 9}, "À MOITIÉ  50%\n")
    with spends(GET=6):
        assert (retried.state, str(retried.result), retried.traceback) == ("RETRY", "no route", "Traceback …")
        assert (custom.state, custom.info) == ("À MOITIÉ  50%\n", {"done": 5, "of": 9})
        assert not retried.ready()
    with spends(GET=1):
        assert revoked.ready()
        with pytest.raises(TaskRevokedError, match="terminated"):
            revoked.get()


def test_progress_to_success(counted, spends):
    """Each state that a process writes after its first is one PUT more, without looking first."""
    app, id = counted(), uuid()
    with spends(PUT=4):
        app.backend.mark_as_started(id, pid=1)
        app.backend.store_result(id, {"done": 1}, "PROGRESS")
        app.backend.mark_as_retry(id, KeyError(1))
        app.backend.mark_as_done(id, "fine")
    assert app.AsyncResult(id).get() == "fine"


# -- as a worker runs tasks


def test_a_task(counted, run, spends):
    """A task that a worker runs is one PUT; with its start tracked, two."""
    app = counted()
    tracked = app.task(done, track_started=True)
    with spends(PUT=1):
        id = run(app.task(add), 2, 3)
    assert app.AsyncResult(id).get() == 5
    with spends(PUT=2):
        run(tracked)


def test_started_is_seen(counted, run):
    """While a tracked task runs, its state is STARTED with pid and host, and what it updates is seen."""
    app, seen = counted(task_track_started=True), []

    @app.task(bind=True)
    def job(self):
        result = app.AsyncResult(self.request.id)
        seen.append((result.state, set(result.info)))
        self.update_state(state="PROGRESS", meta={"done": 1})
        seen.append((result.state, result.info))

    id = run(job)
    assert seen == [("STARTED", {"pid", "hostname"}), ("PROGRESS", {"done": 1})]
    assert app.AsyncResult(id).state == "SUCCESS"


def test_a_failing_task(counted, run):
    """A task that raises is a FAILURE with the traceback of the task's own lines."""
    app = counted()

    @app.task
    def job():
        raise OutOfStock("tea")

    result = app.AsyncResult(run(job))
    with pytest.raises(OutOfStock, match="tea"):
        result.get()
    assert "in job" in result.traceback


def test_a_value_that_cannot_be_encoded(counted, run):
    """A value that the serializer refuses is a FAILURE that says so, not a lost result."""
    app = counted()

    @app.task
    def job():
        return object()

    result = app.AsyncResult(run(job))
    assert result.state == "FAILURE"
    with pytest.raises(Exception, match="JSON"):
        result.get()


def test_a_retried_task(counted, run, spends):
    """A task that retries is RETRY; when it succeeds at last in the same process, that is one PUT."""
    app, tries = counted(), []

    @app.task(bind=True)
    def job(self):
        tries.append(1)
        if len(tries) == 1:
            raise Retry("later", exc=OSError("no route"))
        return "at last"

    id = run(job)
    assert app.AsyncResult(id).state == "RETRY"
    with spends(PUT=1):
        run(job, id=id)
    assert app.AsyncResult(id).get() == "at last"


@pytest.mark.parametrize("how", ["task", "request", "raise"])
def test_ignore_result(counted, run, spends, how):
    """A task whose result is ignored makes no request at all, tracked or not."""
    # before 5.7 Celery stores STARTED although the request says to ignore
    app = counted(task_track_started=how == "task" or (how == "request" and CELERY >= (5, 7)))

    @app.task(ignore_result=how == "task")
    def job():
        if how == "raise":
            raise Ignore
        return 1

    with spends():
        run(job, request={"ignore_result": True} if how == "request" else {})


def test_ignored_failure(counted, run, spends):
    """A failure of an ignored task makes no request, unless `task_store_errors_even_if_ignored` asks for one."""
    app = counted()

    def fail():
        raise KeyError("no")

    with spends():
        run(app.task(fail, name="ignored", ignore_result=True))
    with spends(PUT=1):
        id = run(app.task(fail, name="kept", ignore_result=True, store_errors_even_if_ignored=True))
    assert app.AsyncResult(id).failed()


def test_extended(counted, run):
    """`result_extended` keeps name, arguments, worker, retries and queue, readable from the AsyncResult."""
    app = counted(result_extended=True)
    result = app.AsyncResult(run(app.task(add, name="proj.add"), 1, 2))
    assert (result.name, list(result.args), result.kwargs) == ("proj.add", [1, 2], {})
    assert (result.worker, result.retries, result.queue) == ("here", 0, "jobs")


def test_parent_and_group_ids(counted, run):
    """Parent and group of a task stand in its meta."""
    app = counted()
    id = run(app.task(done), request={"parent_id": "p", "group": "g"})
    meta = app.backend.get_task_meta(id)
    assert (meta["parent_id"], meta["group_id"], meta["task_id"]) == ("p", "g", id)


def test_children_and_collect(counted, run):
    """The tasks that a task sent are its children, and ``collect()`` walks the tree of them."""
    app = counted()
    leaf = app.task(add)

    @app.task
    def root():
        return [leaf.delay(x, x).id for x in (2, 3)]

    @app.task
    def parent():
        return root.delay().id

    top = app.AsyncResult(run(parent))
    middle = app.AsyncResult(run(root, id=top.get()))
    assert [child.id for child in top.children] == [middle.id]
    for x, id in zip((2, 3), middle.get(), strict=True):
        run(leaf, x, x, id=id)
    assert [value for result, value in top.collect() if not result.children] == [4, 6]
    assert top.get_leaf() == 6
    assert len(top.graph) == 4


@pytest.mark.parametrize("store", [False, True])
def test_eager(counted, spends, store):
    """An eager task makes no request, and with `task_store_eager_result` one PUT that anybody can read."""
    app = counted(task_always_eager=True, task_store_eager_result=store)
    with spends(**({"PUT": 1} if store else {})):
        result = app.task(done).delay()
    assert isinstance(result, EagerResult)
    assert result.get() == "done"
    if store:
        with spends(GET=1):
            assert app.AsyncResult(result.id).get() == "done"


def test_eager_results_are_not_waited_for(counted):
    """Fetching a result that an eager task did not store warns, as with every backend."""
    app = counted(task_always_eager=True)
    with pytest.warns(RuntimeWarning, match="task_store_eager_result"), pytest.raises(app.AsyncResult.TimeoutError):
        app.AsyncResult(uuid()).get(timeout=0)


# -- forgetting, existing, caching


def test_forget(counted, stored, spends):
    """``forget()`` is one DELETE, after which the result is PENDING again; of a result not read before, a GET too."""
    result = stored(counted(), 1)
    assert result.get() == 1
    with spends(DELETE=1):
        result.forget()
    with spends(GET=1):
        assert result.state == "PENDING"
    with spends(GET=1, DELETE=1):
        result.forget()


def test_forgotten_result_may_be_stored_again(counted, stored, spends):
    """A task that runs again after ``forget()`` stores its result with one PUT."""
    app = counted()
    first = stored(app, 1)
    first.forget()
    with spends(PUT=1):
        again = stored(app, 2, id=first.id)
    assert again.get() == 2


def test_forget_with_parents(counted, stored, spends):
    """Forgetting the end of a chain forgets the chain."""
    app = counted()
    result = stored(app, 2)
    result.parent = stored(app, 1)
    with spends(GET=2, DELETE=2):
        result.forget()
    assert result.parent.state == "PENDING"


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "STARTED", "PENDING"])
def test_exists(counted, stored, spends, state):
    """What is stored exists, whatever its state; one GET says so."""
    app = counted()
    result = stored(app, ValueError("x") if state == "FAILURE" else None, state)
    with spends(GET=2):
        assert app.backend.task_result_exists(result.id)
        assert not app.backend.task_result_exists(uuid())
    if CELERY >= (5, 7):
        assert result.exists()


@pytest.mark.parametrize(("size", "gets"), [(-1, 3), (2, 3), (100, 2)])
def test_cache(counted, stored, spends, size, gets):
    """`result_cache_max` bounds the successes that a process remembers; -1 remembers none."""
    app = counted(result_cache_max=size)
    first, second, third = (stored(app, number) for number in range(3))
    for result in (first, second):
        assert result.get() == result.get()
    with spends(GET=gets - 1):
        third.get()
        app.AsyncResult(first.id).get()
    del first, second


def test_unfinished_states_and_failures_are_not_remembered(counted, stored, spends):
    """Only a SUCCESS is answered from memory by another AsyncResult."""
    app = counted()
    ids = [stored(app, None, "STARTED").id, stored(app, KeyError("x"), "FAILURE").id]
    with spends(GET=4):
        assert [app.AsyncResult(id).state for id in ids * 2] == ["STARTED", "FAILURE"] * 2


def test_reload(counted, stored, make_app, server):
    """``reload_task_result`` fetches again what this process remembers."""
    app = counted()
    result = stored(app, 1)
    assert result.get() == 1
    other = make_app(server)
    other.backend.forget(result.id)
    stored(other, 2, id=result.id)
    app.backend.reload_task_result(result.id)
    assert app.AsyncResult(result.id).get() == 2


# -- the backend itself


@pytest.mark.parametrize(
    "path", ["celery_s3.backends.S3Backend", "celery_s3.backends.s3.S3Backend", "celery_s3.backends.s3:S3Backend"]
)
def test_import_paths(make_app, seaweed, stored, path):
    """Both import paths of 1.0.1 name the backend."""
    app = make_app(seaweed, result_backend=path)
    assert type(app.backend) is celery_s3.backends.S3Backend
    assert stored(app, 1).get() == 1


def test_url(seaweed, prefix, stored, monkeypatch):
    """``celery-s3://bucket/prefix`` finds the backend by its entry point; credentials may be the environment's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    url = f"celery-s3://{seaweed.bucket}/{prefix}?endpoint_url={seaweed.endpoint_url}"
    app = Celery("by-url", set_as_current=False, broker="memory://", backend=url)
    assert type(app.backend) is celery_s3.backends.S3Backend
    result = stored(app, "there")
    assert app.backend.store.get(f"{prefix}celery-task-meta-{result.id}").size > 0
    assert result.get() == "there"
    assert app.backend.as_uri().startswith(f"celery-s3://{seaweed.bucket}/{prefix}?")
    app.close()


def test_url_wins_over_the_dict(make_app, seaweed, stored, prefix):
    """Of URL and dict, the URL is stronger: its prefix is where results go."""
    app = make_app(seaweed, result_backend=f"celery-s3://{seaweed.bucket}/{prefix}url/")
    result = stored(app, 1)
    assert app.backend.store.get(f"{prefix}url/celery-task-meta-{result.id}").size > 0


def test_as_uri_shows_no_secret(make_app, seaweed):
    """Where the results are, and never a secret, whoever asks."""
    backend = make_app(seaweed).backend
    assert backend.as_uri() == backend.as_uri(include_password=True)
    assert seaweed.bucket in backend.as_uri()
    assert seaweed.secret_key not in f"{backend.as_uri()}{vars(backend)}"


def test_global_keyprefix(make_app, seaweed, stored, prefix):
    """`global_keyprefix` stands before the key's name, behind the base path, for results and for groups."""
    app = make_app(seaweed, result_backend_transport_options={"global_keyprefix": "blue"})
    result = stored(app, 1)
    app.GroupResult("g", [result]).save()
    for name in (f"celery-task-meta-{result.id}", "celery-taskset-meta-g"):
        assert app.backend.store.get(f"{prefix}blue_{name}").size > 0
    assert make_app(seaweed).AsyncResult(result.id).state == "PENDING"


def test_pickled(make_app, seaweed, stored):
    """Backend, AsyncResult and GroupResult can be pickled and used where they come out, without a secret inside."""
    app = make_app(seaweed, result_expires=1234)
    app.set_current()
    result = stored(app, 7)
    child = stored(app, 8)
    child.parent = result
    group = app.GroupResult("g", [result, child])
    pickled = pickle.dumps((app.backend, child, group))
    assert seaweed.secret_key.encode() not in pickled
    backend, child, group = pickle.loads(pickled)
    assert (backend.url, backend.expires) == (app.backend.url, 1234)
    assert backend.get_task_meta(result.id)["result"] == 7
    assert (child.get(), child.parent.get(), group.get()) == (8, 7, [7, 8])
    assert group.backend is not None
    assert copy.copy(child).get() == 8


def test_thread_safe(make_app, seaweed, stored):
    """One backend serves all threads of a process, whatever `result_backend_thread_safe` says."""
    app = make_app(seaweed, result_backend_thread_safe=False)
    assert app.backend.thread_safe
    found, errors = [], []

    def work(number):
        try:
            result = stored(app, number)
            found.append((app.backend, result.get(timeout=5) == number))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(found) == {(app.backend, True)}


# -- always retry


ALWAYS = {
    "result_backend_always_retry": True,
    "result_backend_base_sleep_between_retries_ms": 1,
    "result_backend_max_sleep_between_retries_ms": 2,
    "s3_backend_settings": {"max_retries": 0, "outage_patience": 0},
}


def test_always_retry(counted, stored, proxy):
    """`result_backend_always_retry` goes on after our own tries are spent, for a store and for a fetch."""
    app = counted(**ALWAYS)
    proxy.fail("PUT", "slow_down", times=3)
    result = stored(app, 1)
    proxy.fail("GET", "internal_error", times=3)
    assert result.get(timeout=20) == 1


def test_always_retry_has_an_end(counted, stored, proxy):
    """`result_backend_max_retries` ends it, with Celery's own error."""
    app = counted(**ALWAYS, result_backend_max_retries=2)
    proxy.fail("GET", "slow_down", times=-1)
    with pytest.raises(BackendGetMetaError):
        app.AsyncResult("x").get(timeout=20)
    assert proxy.counts()["GET"] == 3


def test_always_retry_is_for_what_may_pass(counted, stored, spends, proxy):
    """What would fail again is raised at once: refused requests, ids that cannot be."""
    app = counted(**ALWAYS)
    proxy.fail("PUT", "access_denied")
    with pytest.raises(ResultNotStored, match="s3:PutObject"), spends(PUT=1):
        stored(app, 1)
    with pytest.raises(ResultNotStored, match="bytes"), spends():
        stored(app, 1, id="x" * 2000)


def test_without_always_retry(counted, stored, proxy):
    """Without it, an error of Celery's kind is raised, which names task, state and cause."""
    app = counted(s3_backend_settings={"max_retries": 0, "outage_patience": 0})
    proxy.fail("* celery-task-meta-job", "internal_error", times=2)
    with pytest.raises(ResultNotStored, match=r"SUCCESS of task job.*500 InternalError") as caught:
        stored(app, 1, id="job")
    assert (caught.value.task_id, caught.value.state) == ("job", states.SUCCESS)
    with pytest.raises(ResultNotRead, match=r"job.*500 InternalError") as caught:
        AsyncResult("job", app=app).get(timeout=5)
    assert (caught.value.task_id, pickle.loads(pickle.dumps(caught.value)).task_id) == ("job", "job")
