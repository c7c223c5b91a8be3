"""Results beyond the first GET: known by their head, fetched when somebody wants them, always of one version."""

from __future__ import annotations

import json
import pickle
import re
import threading
import tracemalloc

import pytest
from celery import states
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.utils.uuid import uuid

from celery_s3.codec.lazy import LazyMeta
from celery_s3.errors import ResultNotRead, ResultNotStored, UnreadableResult
from celery_s3.results.write_once import HEAD_BYTES, PART_BYTES

LARGE = 300_000


def ranges(proxy):
    """First and last byte of each GET, in order."""
    found = (re.fullmatch(r"bytes=(\d+)-(\d*)", record.headers.get("range", "")) for record in proxy.records())
    return sorted((int(match[1]), int(match[2] or -1)) for match in found if match)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_around_the_first_bytes(counted, proxy, offset):
    """A result that fits into the first GET exactly is one GET, one byte more is two."""
    app, id = counted(), uuid()
    frame = len(json.dumps({"status": "SUCCESS", "result": ""}))
    body = json.dumps({"status": "SUCCESS", "result": "x" * (HEAD_BYTES + offset - frame)}).encode()
    key = app.backend._full(app.backend.get_key_for_task(id))
    app.backend.store.put(key, body, metadata={"celery-state": "SUCCESS"}, content_type="application/json")
    proxy.reset()
    assert len(app.AsyncResult(id).get(timeout=5)) == HEAD_BYTES + offset - frame
    last = HEAD_BYTES - 1
    assert ranges(proxy) == ([(0, last), (HEAD_BYTES, HEAD_BYTES + PART_BYTES - 1)] if offset == 1 else [(0, last)])


def test_known_without_the_body(counted, stored, proxy, spends):
    """State, readiness, existence and children of a large result are one GET of its first bytes, and never the rest."""
    app = counted()
    child = app.AsyncResult("the-child")
    result = stored(app, "x" * LARGE, _children=[child])
    questions = (
        lambda: result.state == "SUCCESS",
        lambda: app.AsyncResult(result.id).ready(),
        lambda: app.AsyncResult(result.id).successful(),
        lambda: app.AsyncResult(result.id).children == [child],
        lambda: app.backend.task_result_exists(result.id),
        lambda: app.backend.get_state(result.id) == "SUCCESS",
        lambda: app.GroupResult("g", [app.AsyncResult(result.id)]).completed_count() == 1,
        lambda: app.GroupResult("g", [app.AsyncResult(result.id)]).ready(),
        lambda: [r.id for _, r in app.AsyncResult(result.id).iterdeps(intermediate=True)] == [result.id, child.id],
    )
    for asks in questions:
        with spends(GET=2 if asks is questions[-1] else 1):
            assert asks()
        assert max(record.received for record in proxy.records()) <= HEAD_BYTES


def test_more_children_than_fit_beside(counted, stored, proxy, spends):
    """Children too many for the metadata are no reason to download a value; who asks for them gets them, as results."""
    app = counted()
    children = [app.AsyncResult(uuid()) for _ in range(60)]
    group = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(60)])
    for many in (children, [group]):
        result = stored(app, "x" * LARGE, _children=many)
        for asks in (
            lambda r: r.state == "SUCCESS",
            lambda r: r.ready() and r.successful() and r.state == "SUCCESS",
            lambda r: app.GroupResult("g", [r]).completed_count() == 1,
        ):
            with spends(GET=1):
                assert asks(app.AsyncResult(result.id))
            assert proxy.records()[0].received <= HEAD_BYTES
        assert result.ready()
        with spends(GET=1):
            assert result.children == many
            assert len(result.get(timeout=5)) == LARGE


def test_a_meta_for_programs(counted, stored):
    """Who asks the backend for the meta of such a result gets the children as Celery stores them, as of a small one."""
    app = counted()
    children = [app.AsyncResult(uuid()) for _ in range(60)]
    result = stored(app, "x" * LARGE, _children=children)
    meta = app.backend.get_task_meta(result.id)
    assert [tuple(child[0]) for child in meta["children"]] == [(child.id, None) for child in children]
    assert json.dumps(meta.copy())


def test_metadata_that_contradicts_the_body(counted, stored):
    """It is an error at once: nobody waits for it to change, and fetches the body again and again."""
    app = counted()
    result = stored(app, ValueError("x" * LARGE), states.FAILURE)
    key = app.backend._full(app.backend.get_key_for_task(result.id))
    found = app.backend.store.get(key)
    metadata = {**found.metadata, "celery-state": "SUCCESS"}
    app.backend.store.put(key, found.body, metadata=metadata, content_type=found.content_type)
    with pytest.raises(UnreadableResult, match="SUCCESS by its metadata and FAILURE by its body"):
        result.get(timeout=30)


UNFINISHED = {"PROGRESS": {"log": "x" * LARGE}, "RETRY": KeyError("x" * LARGE)}


@pytest.mark.parametrize("state", ["FAILURE", *UNFINISHED])
def test_states_without_their_body(counted, stored, proxy, spends, state):
    """Whatever the state, to ask for it costs the first bytes of a large object."""
    app = counted()
    result = stored(app, UNFINISHED.get(state, ValueError("x" * LARGE)), state)
    for asks in (
        lambda: app.AsyncResult(result.id).state == state,
        lambda: app.AsyncResult(result.id).ready() == (state == "FAILURE"),
        lambda: app.GroupResult("g", [app.AsyncResult(result.id)]).completed_count() == 0,
        lambda: app.GroupResult("g", [app.AsyncResult(result.id)]).failed() == (state == "FAILURE"),
    ):
        with spends(GET=1):
            assert asks()
        assert proxy.records()[0].received <= HEAD_BYTES
    with spends(GET=2):
        assert len(str(app.AsyncResult(result.id).info)) >= LARGE


@pytest.mark.parametrize("state", UNFINISHED)
def test_waiting_past_a_large_state(counted, stored, proxy, state):
    """Who waits, alone or for a group, does not download what a task tells of itself meanwhile."""
    app = counted()
    result = stored(app, UNFINISHED[state], state)
    other = stored(app, "other")
    waits = (
        lambda: app.AsyncResult(result.id).get(timeout=0.1),
        lambda: app.GroupResult("g", [app.AsyncResult(result.id)]).get(timeout=0.1),
        lambda: app.GroupResult("g", [app.AsyncResult(result.id), other]).get(timeout=0.1),
    )
    proxy.reset()
    for wait in waits:
        with pytest.raises(CeleryTimeoutError):
            wait()
    assert max(record.received for record in proxy.records()) <= HEAD_BYTES
    assert all(record.headers["range"] == f"bytes=0-{HEAD_BYTES - 1}" for record in proxy.records())


def test_progress_that_ends_while_it_is_read(counted, stored):
    """A large state that was followed by another one before its value was fetched is told as that one."""
    app = counted()
    result = stored(app, UNFINISHED["PROGRESS"], "PROGRESS")
    meta = app.backend.get_task_meta(result.id)
    stored(app, "done", id=result.id)
    assert (meta["status"], meta["result"], meta["status"]) == ("PROGRESS", "done", "SUCCESS")


def test_large_failure_of_a_parent(counted, stored):
    """A chain whose first task has failed with a large error has failed, and tells that error."""
    app = counted()
    result = app.AsyncResult(uuid())
    result.parent = app.AsyncResult(stored(app, ValueError("x" * LARGE), "FAILURE").id)
    with pytest.raises(ValueError, match=r"x{1000}"):
        result.get(timeout=5)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_replaced_while_somebody_waits(counted, stored, state):
    """A result that is replaced between its head and its rest, while somebody waits, is waited for again."""
    app = counted()
    result = stored(app, "x" * LARGE if state == "SUCCESS" else ValueError("x" * LARGE), state)
    whole, later = app.backend.results.whole, {"replace": True}

    def replace_first(found):
        if later.pop("replace", False):
            app.AsyncResult(result.id).forget()
            stored(app, {}, "STARTED", id=result.id)
        return whole(found)

    app.backend.results.whole = replace_first
    assert result.get(timeout=5, on_interval=lambda: stored(app, "again", id=result.id)) == "again"


@pytest.mark.parametrize("others", [None, 0, 1], ids=["alone", "in a group of one", "in a group of two"])
def test_timeout_bounds_the_parts(counted, stored, proxy, others):
    """No part of a large value is tried again after the caller's time is over: neither alone nor in a group."""
    app = counted(s3_backend_settings={"max_retries": 50})
    large = stored(app, VERY_LARGE)
    members = [large, *(stored(app, "small") for _ in range(others or 0))]
    proxy.fail(f"GET {large.id}", "slow_down", times=-1, after=1)
    waited = large if others is None else app.GroupResult("g", members)
    with pytest.raises(ResultNotRead, match=large.id):
        waited.get(timeout=0.5)
    # five parts at a time, each a few times: without a bound each would be tried 51 times
    assert proxy.counts()["GET"] < 60


def test_members_of_a_group_come_abreast(counted, stored, proxy, spends):
    """The parts of a very large member are read by several threads, as those of a result alone; none is read twice."""
    app = counted()
    members = [stored(app, VERY_LARGE), stored(app, "small"), stored(app, "x" * LARGE)]
    get, threads = app.backend.results.store.get, {}

    def noting(key, **options):
        threads.setdefault(key, set()).add(threading.current_thread())
        return get(key, **options)

    app.backend.results.store.get = noting
    proxy.configure(delay=0.02)  # so that one thread alone is not there for all
    with spends(GET=(1 + 5) + 1 + 2):
        assert app.GroupResult("g", members).get(timeout=30) == [VERY_LARGE, "small", "x" * LARGE]
    app.backend.results.store.get = get
    assert sorted(map(len, threads.values()))[-1] > 1
    assert threading.current_thread() not in set().union(*threads.values())


def test_group_after_ready(counted, stored, spends):
    """What is remembered of a group's large members when its values are asked for is not asked for again."""
    app = counted(result_cache_max=10)
    members = [stored(app, "x" * LARGE), stored(app, "y" * LARGE)]
    with spends(GET=2):
        assert app.GroupResult("g", members).ready()
    with spends(GET=2):
        assert app.GroupResult("g", [app.AsyncResult(m.id) for m in members]).get() == ["x" * LARGE, "y" * LARGE]


def test_value(counted, stored, spends):
    """The value of a large result is fetched once, by one GET more, of the version whose head was seen."""
    app = counted()
    result = stored(app, "x" * LARGE)
    with spends(GET=1):
        assert result.ready()
    with spends(GET=1):
        assert len(result.get(timeout=5)) == len(result.result) == LARGE
        assert (result.traceback, result.date_done is None) == (None, False)


VERY_LARGE = "".join(f"{number:07}," for number in range(2_125_000))
#: A look, its beginning, three parts, another look, its completion.
UPLOAD = {"GET": 2, "CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}


@pytest.mark.parametrize(
    ("kind", "conf"),
    [
        (str, {}),
        (bytes, {}),
        (str, {"result_serializer": "pickle", "result_accept_content": ["pickle"]}),
        (bytes, {"s3_backend_settings": {"seal_keys": ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}}),
        (str, {"s3_backend_settings": {"conditional_writes": "off"}}),
    ],
    ids=["text", "bytes", "pickle", "sealed", "unconditional"],
)
def test_in_parts(counted, stored, proxy, spends, conf, kind):
    """17 MB go up in parts of 8 MiB and come in parallel parts of 4 MiB, all bound to one version."""
    app, value = counted(**conf), VERY_LARGE if kind is str else VERY_LARGE.encode()
    unconditional = app.backend.settings.conditional_writes == "off"
    with spends(**UPLOAD | ({"GET": 1} if unconditional else {})):
        result = stored(app, value)
    with spends(GET=1 + 5):
        assert result.get(timeout=30) == value
    starts = [start for start, _ in ranges(proxy)]
    if "seal_keys" not in conf.get("s3_backend_settings", {}):
        assert starts == [0, *range(HEAD_BYTES, len(value), PART_BYTES)]
    assert len({record.headers.get("if-match") for record in proxy.records()} - {None}) == 1
    with spends(GET=1):
        stored(app, value, id=result.id)
    assert app.AsyncResult(result.id).get(timeout=30) == value


def test_state_of_what_went_up_in_parts(counted, stored, proxy, spends):
    """What stands beside a result stands beside an upload as well: its state needs 64 KiB."""
    app = counted()
    result = stored(app, VERY_LARGE)
    with spends(GET=1):
        assert app.AsyncResult(result.id).successful()
    assert proxy.records()[0].received <= HEAD_BYTES
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"


def test_large_in_a_rerun(counted, stored, spends):
    """A large result over its task's state, of this process or of another one, is the same requests."""
    app, other = counted(), counted()
    for starter in (app, other):
        started = stored(starter, {"pid": 1}, "STARTED")
        with spends(**UPLOAD):
            result = stored(app, VERY_LARGE, id=started.id)
        assert result.get(timeout=30) == VERY_LARGE


def test_large_failure_to_store(counted, stored, proxy):
    """An upload that fails is an error that names the task, and leaves neither object nor parts."""
    app = counted(s3_backend_settings={"max_retries": 0, "outage_patience": 0})
    proxy.fail("UploadPart", "access_denied", times=-1)
    with pytest.raises(ResultNotStored, match="SUCCESS of task the-id was not stored"):
        stored(app, VERY_LARGE, id="the-id")
    assert proxy.counts()["AbortMultipartUpload"] == 1
    assert app.AsyncResult("the-id").state == "PENDING"


def test_with_a_small_cache(counted, stored, spends):
    """What is remembered of a large result is its whole meta once it has been fetched."""
    app = counted(result_cache_max=10)
    result = stored(app, "x" * LARGE)
    with spends(GET=2):
        assert len(result.get()) == LARGE
    with spends():
        assert len(app.AsyncResult(result.id).get()) == LARGE


@pytest.mark.parametrize("fetched", [False, True])
def test_pickled(counted, stored, fetched):
    """The meta of a large result can be pickled, fetched or not, and comes out whole."""
    app = counted()
    result = stored(app, "x" * LARGE)
    meta = app.backend.get_task_meta(result.id)
    assert isinstance(meta, LazyMeta)
    if fetched:
        assert meta["result"]
    copy = pickle.loads(pickle.dumps(meta))
    assert (type(copy), copy["status"], len(copy["result"])) == (dict, "SUCCESS", LARGE)


def test_replaced_while_it_is_read(counted, stored, make_app, server):
    """A result that is replaced by another SUCCESS between its head and its rest comes whole, in the new version."""
    app, other = counted(), make_app(server)
    result = stored(app, "a" * LARGE)
    assert result.ready()
    other.AsyncResult(result.id).forget()
    stored(other, "b" * (LARGE + 9), id=result.id)
    assert result.get(timeout=5) == "b" * (LARGE + 9)


@pytest.mark.parametrize("state", [None, "STARTED", "FAILURE"])
def test_gone_while_it_is_read(counted, stored, make_app, server, state):
    """A result that is forgotten between its head and its rest, or failed in a new run, is an error, not a value."""
    app, other = counted(), make_app(server)
    result = stored(app, "a" * LARGE)
    assert result.ready()
    other.AsyncResult(result.id).forget()
    if state:
        stored(other, KeyError("x") if state == "FAILURE" else {}, state, id=result.id)
    for _ in range(2):
        with pytest.raises(ResultNotRead, match=f"{result.id} was forgotten or replaced"):
            result.get(timeout=5)
    assert app.AsyncResult(result.id).state == state or "PENDING"


def test_gone_while_a_group_is_read(counted, stored, make_app, server):
    """A member that is forgotten between its head and its rest is pending again."""
    app, other = counted(), make_app(server)
    result = stored(app, "a" * LARGE)
    whole, later = app.backend.results.whole, {"forget": True}

    def forget_first(found):
        if later.pop("forget", False):
            other.AsyncResult(result.id).forget()
        return whole(found)

    app.backend.results.whole = forget_first
    store_again = lambda: stored(other, "again", id=result.id)  # noqa: E731
    assert app.GroupResult("g", [result]).get(timeout=5, on_interval=store_again) == ["again"]


@pytest.mark.parametrize("fault", ["slow_down", "truncate", "reset"])
def test_faults_in_the_rest(counted, stored, proxy, fault):
    """A fault while the rest is fetched is tried again."""
    app = counted()
    result = stored(app, "x" * LARGE)
    assert result.ready()
    proxy.fail("GET", fault, times=2)
    assert len(result.get(timeout=5)) == LARGE


def test_large_failure(counted, stored):
    """A failure with a large message, or a large traceback, is a failure like any other."""
    app = counted()
    result = stored(app, ValueError("x" * LARGE), states.FAILURE)
    assert (result.state, result.failed()) == ("FAILURE", True)
    with pytest.raises(ValueError, match=r"x{1000}"):
        result.get(timeout=5)


def test_large_progress(counted, stored):
    """A large custom state is read like a small one."""
    app = counted()
    result = stored(app, {"log": "x" * LARGE}, "PROGRESS")
    assert (result.state, len(result.info["log"])) == ("PROGRESS", LARGE)
    stored(app, "done", id=result.id)
    assert result.get() == "done"


def test_large_result_of_another_backend(counted, spends):
    """A large object without our metadata is read whole to know its state, and is final where it is a SUCCESS."""
    app, id = counted(), uuid()
    key = app.backend._full(app.backend.get_key_for_task(id))
    app.backend.store.put(key, json.dumps({"status": "SUCCESS", "result": "x" * LARGE}).encode())
    with spends(GET=2):
        assert app.AsyncResult(id).state == "SUCCESS"
    with spends(PUT=1, GET=2):
        app.backend.mark_as_failure(id, KeyError("late"))
    assert len(app.AsyncResult(id).get()) == LARGE


def test_large_and_compressed(counted, stored, spends):
    """A large compressed result is put together before it is decompressed."""
    app = counted(result_compression="gzip")
    value = uuid() + "".join(uuid() for _ in range(8_000))
    result = stored(app, value)
    with spends(GET=2):
        assert result.get() == value


def test_large_group(counted, stored):
    """A saved group of thousands is restored whole."""
    app = counted()
    result = app.GroupResult("g", [app.AsyncResult(f"{number}-{'x' * 30}") for number in range(3000)])
    result.save()
    assert app.GroupResult.restore("g", backend=app.backend, app=app).results == result.results


@pytest.mark.parametrize("value", ["x" * 100_000, b"x" * 100_000])
def test_states_keep_no_values(counted, stored, spends, value):
    """Who knows that large results are there holds nothing of their values, and fetches each in one more request."""
    app = counted()
    result = app.GroupResult("g", [stored(app, value) for _ in range(20)])
    tracemalloc.start()
    try:
        assert result.ready()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20 * 20_000
    with spends(GET=20):
        assert [member.get(timeout=5) for member in result] == [value] * 20
