"""Groups: joined with one GET a member, side by side; saved, restored, forgotten."""

from __future__ import annotations

import time
import tracemalloc

import celery
import pytest
from celery import states
from celery.exceptions import ImproperlyConfigured, TimeoutError
from celery.result import GroupResult, ResultSet
from kombu.utils.uuid import uuid

from celery_s3.errors import ResultNotRead

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))


@pytest.fixture
def group(stored):
    """``group(app, *values)``: a saved-to-be group of stored successes; an exception is a stored failure."""

    def make(app, *values):
        members = []
        for value in values:
            state = states.FAILURE if isinstance(value, Exception) else states.SUCCESS
            members.append(stored(app, value, state))
        return app.GroupResult(uuid(), members)

    return make


@pytest.mark.parametrize("how", ["get", "join", "join_native"])
def test_join(counted, group, spends, how):
    """The values of a group come in its order, for one GET a member."""
    result = group(counted(), *range(20))
    with spends(GET=20):
        assert getattr(result, how)(timeout=5) == list(range(20))
    with spends():
        assert (result.get(), result.ready(), result.completed_count()) == (list(range(20)), True, 20)


def test_joined_after_it_was_ready(counted, group, spends):
    """``get()`` after ``ready()`` asks for nothing again."""
    result = group(counted(), *range(5))
    with spends(GET=5):
        assert result.ready()
        assert result.get() == [0, 1, 2, 3, 4]


def test_read_side_by_side(counted, group, proxy):
    """A group is read with `concurrency` requests at the same time, and no more."""
    result = group(counted(s3_backend_settings={"concurrency": 4}), *range(16))
    proxy.configure(delay=0.02)
    proxy.reset()
    assert result.get(timeout=5) == list(range(16))
    assert 2 <= proxy.peak() <= 4


def test_large_members_side_by_side(counted, group, proxy):
    """So are the bodies of large results, not one after the other."""
    result = group(counted(), *("x" * (70_000 + number) for number in range(8)))
    proxy.configure(delay=0.05)
    proxy.reset()
    assert [len(value) for value in result.get(timeout=5)] == [70_000 + number for number in range(8)]
    rests = [record.time for record in proxy.records() if not record.headers["range"].startswith("bytes=0-")]
    assert len(rests) == 8
    assert proxy.counts() == {"GET": 16}
    assert max(rests) - min(rests) < 8 * 0.05


@pytest.mark.parametrize("how", ["get", "join", "join_native"])
def test_failed_member(counted, group, how):
    """A member's failure is raised; with ``propagate=False`` it stands in its place."""
    app = counted()
    with pytest.raises(KeyError, match="two"):
        getattr(group(app, 1, KeyError("two"), 3), how)(timeout=5)
    values = getattr(group(app, 1, KeyError("two"), 3), how)(timeout=5, propagate=False)
    assert (values[0], type(values[1]), values[2]) == (1, KeyError, 3)


def test_failure_is_raised_before_the_rest_is_there(counted, group):
    """A failure that is there is raised although another member never comes."""
    app = counted()
    result = app.GroupResult(uuid(), [app.AsyncResult("never"), *group(app, KeyError("early"))])
    with pytest.raises(KeyError, match="early"):
        result.get(timeout=5)


def test_nested_groups(counted, group, spends):
    """A group in a group gives its list in its place, at any depth, each leaf for one GET."""
    app = counted()
    inner = app.GroupResult(uuid(), [*group(app, 3), group(app, 4, 5)])
    result = app.GroupResult(uuid(), [*group(app, 1), group(app, 2), inner, *group(app, 6)])
    with spends(GET=6):
        assert result.join_native(timeout=5) == [1, [2], [3, [4, 5]], 6]
    with spends():
        assert result.join(timeout=5) == [1, [2], [3, [4, 5]], 6]


def test_unfinished_nested_group(counted, group):
    """A group in a group that is not finished keeps the deadline of the whole."""
    app = counted()
    result = app.GroupResult(uuid(), [*group(app, 1), app.GroupResult(uuid(), [app.AsyncResult("never")])])
    with pytest.raises(TimeoutError):
        result.get(timeout=0.1)


def test_failure_in_a_nested_group(counted, group):
    """A failure in the depth is raised, or stands in its place."""
    app = counted()
    result = app.GroupResult(uuid(), [*group(app, 1), group(app, KeyError("deep"), 3)])
    with pytest.raises(KeyError, match="deep"):
        result.get(timeout=5)
    if CELERY < (5, 7):
        pytest.skip("join_native() of this Celery keeps propagate=False to itself")
    one, (error, three) = result.get(timeout=5, propagate=False)
    assert (one, type(error), three) == (1, KeyError, 3)


def test_empty_groups(counted, group, spends):
    """An empty group is an empty list, alone and inside of another, and asks for nothing."""
    app = counted()
    with spends():
        for how in ("get", "join", "join_native"):
            assert getattr(app.GroupResult("empty", []), how)(timeout=5) == []
        assert app.GroupResult("only", [app.GroupResult("empty", [])]).get(timeout=5) == [[]]
    result = app.GroupResult("outer", [*group(app, 1), app.GroupResult("empty", [])])
    assert result.get(timeout=5) == [1, []]


def test_duplicate_members(counted, stored, spends):
    """A task that is in a group twice is read once, in the group and in groups in it."""
    app = counted()
    id = stored(app, 1).id
    members = [app.AsyncResult(id), app.AsyncResult(id)]
    with spends(GET=1):
        assert [each for each, _ in ResultSet(members, app=app).iter_native(timeout=5)] == [id]
        assert [member.get() for member in members] == [1, 1]
    nested = app.GroupResult("g", [app.AsyncResult(id), app.GroupResult("h", [app.AsyncResult(id)] * 2)])
    with spends(GET=1):
        assert nested.get(timeout=5) == [1, [1, 1]]


def test_iter_native(counted, group):
    """Results are yielded as they become ready, not in the group's order."""
    app = counted()
    late, early = app.AsyncResult(uuid()), group(app, "early")[0]

    def store_late():
        app.backend.store_result(late.id, "late", states.SUCCESS)

    result = app.GroupResult(uuid(), [late, early])
    found = [(id, meta["result"]) for id, meta in result.iter_native(timeout=10, on_interval=store_late)]
    assert found == [(early.id, "early"), (late.id, "late")]
    assert result.get() == ["late", "early"]


def test_callback(counted, group):
    """A callback gets id and value of each member instead of a list of them."""
    result, found = group(counted(), "a", "b"), {}
    result.join(timeout=5, callback=found.__setitem__)
    native = {}
    result.join_native(timeout=5, callback=native.__setitem__)
    assert found == native == {member.id: value for member, value in zip(result, "ab", strict=True)}


def test_values_for_a_callback_are_let_go_of(counted, group, spends):
    """Who takes the values by a callback has them, and not the group: it knows the states, and reads values again."""
    app, size = counted(s3_backend_settings={"concurrency": 2}), 2_000_000
    result = group(app, *("x" * size for _ in range(16)))
    tracemalloc.start()
    try:
        result.get(timeout=10, callback=lambda id, value: None)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < size
    assert most < 12 * size
    with spends():
        assert (result.successful(), result.completed_count()) == (True, 16)
    with spends(GET=2):
        assert len(result[0].get(timeout=5)) == size
    assert [len(value) for value in result.get(timeout=10)] == [size] * 16
    with spends():
        assert len(result.get(timeout=10)) == 16


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's Redis backend
def test_no_more_is_kept_for_a_callback_than_by_redis(counted, stored, redis_url):
    """Celery's Redis backend keeps the values until the group is gone; here they are not kept in the first place."""

    def kept(app):
        result = app.GroupResult(uuid(), [stored(app, "x" * 1_000_000) for _ in range(8)])
        tracemalloc.start()
        try:
            result.get(timeout=10, callback=lambda id, value: None)
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    redis = celery.Celery("redis", backend=redis_url, set_as_current=False)
    try:
        assert kept(redis) > 7_000_000
    finally:
        redis.close()
    assert kept(counted()) < 1_000_000


def test_small_values_for_a_callback(counted, group, spends):
    """Small ones are let go of too; a failure, and what was known before, stays."""
    app = counted()
    result = group(app, "a", "b", KeyError("c"))
    assert result[0].get() == "a"
    result.get(timeout=5, propagate=False, callback=lambda id, value: None)
    with spends(GET=1):
        assert [type(member.result) for member in result] == [str, str, KeyError]


def test_callback_for_groups_in_groups(counted, group, spends):
    """The values of a group in the group are given in one list, for one GET each, and then let go of."""
    app, found = counted(), {}
    inner = group(app, 1, 2)
    result = app.GroupResult(uuid(), [*group(app, 0), inner])
    with spends(GET=3):
        result.get(timeout=5, callback=found.__setitem__)
    assert found == {result[0].id: 0, inner.id: [1, 2]}
    with spends(GET=2):
        assert (inner.successful(), inner.get(timeout=5)) == (True, [1, 2])


@pytest.mark.parametrize("again", [1, None])
def test_let_go_of_and_replaced(counted, group, stored, again):
    """A value that was let go of and is gone, or another one, when it is asked for is an error, and no value."""
    app = counted()
    result = group(app, "a")
    result.get(timeout=5, callback=lambda id, value: None)
    app.backend.forget(result[0].id)
    if again:
        stored(app, KeyError("b"), states.FAILURE, id=result[0].id)
    with pytest.raises(ResultNotRead, match="forgotten or replaced"):
        result[0].get(timeout=5)


def test_with_an_eager_result(counted, stored, spends):
    """A result of a task that ran here stands beside those of others, first or last."""
    app = counted()

    @app.task
    def here():
        return "here"

    for place in (0, 1):
        members = [stored(app, "there")]
        members.insert(place, here.apply())
        result = ResultSet(members, app=app)
        with spends(GET=1):
            assert result.completed_count() == 2
        assert sorted(result.get(timeout=5)) == ["here", "there"]
        fresh = app.GroupResult(uuid(), [app.AsyncResult(stored(app, "there").id), here.apply()])
        assert fresh.get(timeout=5) == ["there", "here"]


def test_failure_before_a_group(counted, stored, spends):
    """The error of a task that was to end before the group is raised: its members are never sent."""
    app = counted()
    first, second = app.AsyncResult(uuid()), app.AsyncResult(uuid())
    second.parent = first

    def waiting(propagate=True, **kwargs):
        members = [app.AsyncResult(uuid()) for _ in range(2)]
        app.GroupResult(uuid(), members, parent=second).get(propagate=propagate, **kwargs)

    with pytest.raises(TimeoutError), spends(GET=4):
        waiting(timeout=0)
    stored(app, 1, id=first.id)
    stored(app, KeyError("second"), states.FAILURE, id=second.id)
    with pytest.raises(KeyError, match="second"):
        waiting(timeout=15)
    with pytest.raises(TimeoutError), spends(GET=2):
        waiting(timeout=0, propagate=False)
    outer = app.GroupResult(uuid(), [app.GroupResult(uuid(), [app.AsyncResult(uuid())], parent=second)])
    with pytest.raises(KeyError, match="second"):
        outer.get(timeout=15)


def test_finished_group_behind_a_task(counted, group, spends):
    """Where a member is there, what came before it has succeeded and is not asked."""
    app = counted()
    result = group(app, 1, 2)
    result.parent = app.AsyncResult(uuid())
    with spends(GET=2):
        assert result.get(timeout=5) == [1, 2]
    result = app.GroupResult(uuid(), [*group(app, 1), app.AsyncResult(uuid())], parent=app.AsyncResult(uuid()))
    with pytest.raises(TimeoutError), spends(GET=2):
        result.get(timeout=0)


def test_on_message(counted, group):
    """``on_message`` is called with each meta that arrives; for a single result it is refused, as ever without push."""
    result, metas = group(counted(), "a", "b"), []
    result.get(timeout=5, on_message=metas.append)
    assert sorted(meta["result"] for meta in metas) == ["a", "b"]
    with pytest.raises(ImproperlyConfigured, match="on_message"):
        result.backend.wait_for_pending(result[0], on_message=metas.append)


def test_on_interval(counted, spends):
    """``on_interval`` is called after every look in vain; the second one asks for fewer members."""
    app, calls = counted(), []
    result = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(3)])

    def call():
        calls.append(time.monotonic())
        if len(calls) == 2:
            for member in result:
                app.backend.store_result(member.id, 1, states.SUCCESS)

    with spends(GET=3 + 2 + 3, PUT=3):
        assert result.get(timeout=10, on_interval=call) == [1, 1, 1]
    assert len(calls) == 2


# -- get_many


def test_get_many(counted, stored, spends):
    """``get_many`` yields each task once, whatever names it: text, bytes, an iterator, twice the same."""
    app = counted()
    ids = [stored(app, number).id for number in range(3)]
    with spends(GET=3):
        found = {id: meta["result"] for id, meta in app.backend.get_many(iter([*ids, ids[0].encode()]), timeout=5)}
    assert found == dict(zip(ids, range(3), strict=True))


def test_get_many_from_memory(counted, stored, spends):
    """What this process remembers is yielded first, without a request."""
    app = counted(result_cache_max=10)
    one, other = stored(app, 1), stored(app, 2)
    one.get()
    with spends(GET=1):
        assert [id for id, _ in app.backend.get_many([other.id, one.id], timeout=5)] == [one.id, other.id]


def test_get_many_once(counted, stored, spends):
    """``max_iterations`` ends it quietly after so many looks, each at every task."""
    app, done = counted(), None
    done = stored(app, 1)
    pending = [uuid() for _ in range(50)]
    with spends(GET=51):
        assert [id for id, _ in app.backend.get_many([*pending, done.id], max_iterations=1)] == [done.id]


def test_get_many_of_nothing(counted, spends):
    """No ids, no requests, no waiting."""
    with spends():
        assert list(counted().backend.get_many([])) == []


def test_abandoned(counted, group):
    """A caller that stops in the middle leaves nothing behind that hinders the next."""
    app = counted()
    result = group(app, *range(30))
    next(iter(app.backend.get_many([member.id for member in result])))
    assert result.get(timeout=5) == list(range(30))


# -- deadlines


@pytest.mark.parametrize("how", ["get", "join_native", "join"])
def test_timeout_zero(counted, group, how, spends):
    """``timeout=0`` is one look: what is there is returned, else it times out at once."""
    if how == "join" and CELERY < (5, 7):
        pytest.skip("join() of this Celery takes 0 for no deadline")
    app = counted()
    assert getattr(group(app, 1, 2), how)(timeout=0) == [1, 2]
    result = app.GroupResult(uuid(), [app.AsyncResult(uuid())])
    with pytest.raises(TimeoutError), spends(GET=1):
        getattr(result, how)(timeout=0)


@pytest.mark.parametrize("how", ["get", "join_native", "join"])
def test_deadline(counted, group, how):
    """A member that does not come raises TimeoutError; the others' values are not lost."""
    app = counted()
    members = [*group(app, 1), app.AsyncResult(uuid())]
    with pytest.raises(TimeoutError):
        getattr(app.GroupResult(uuid(), members), how)(timeout=0.1)
    assert members[0].get(timeout=0) == 1


def test_large_group_waits_with_few_requests(counted, stored, proxy):
    """A look at a big running group asks for a window of it, not for every member."""
    app = counted(s3_backend_settings={"concurrency": 32})
    result = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(200)])
    with pytest.raises(TimeoutError):
        result.get(timeout=0.25, interval=0.1)
    assert proxy.counts()["GET"] <= 32 + 16 + 8 + 8


# -- saved groups


def test_save_and_restore(counted, group, spends):
    """A saved group is one PUT, restored with one GET, deleted with one DELETE; its results stay."""
    app = counted()
    result = group(app, 1, 2)
    result.parent = group(app, 0)[0]
    with spends(PUT=1):
        result.save()
    with spends(GET=1):
        restored = GroupResult.restore(result.id, app=app)
    assert restored == result
    assert (restored.get(timeout=5), restored.parent.id) == ([1, 2], result.parent.id)
    with spends(DELETE=1):
        restored.delete()
    assert GroupResult.restore(result.id, app=app) is None
    assert result.get() == [1, 2]


def test_restored_by_another_process(counted, make_app, server, group):
    """A saved group is restored by any process, nested groups included."""
    app = counted()
    outer = app.GroupResult(uuid(), [*group(app, 1), group(app, 2, 3)])
    outer.save()
    other = make_app(server)
    assert other.GroupResult.restore(outer.id, backend=other.backend, app=other).get(timeout=5) == [1, [2, 3]]


def test_saved_again(counted, group):
    """A group that is saved again is replaced."""
    app = counted()
    result = group(app, 1)
    result.save()
    result.results.append(group(app, 2)[0])
    result.save()
    assert GroupResult.restore(result.id, app=app).get(timeout=5) == [1, 2]


def test_forget(counted, group, spends):
    """Forgetting a group is one DELETE a member."""
    app = counted()
    result = group(app, 1, 2, 3)
    result.get()
    with spends(DELETE=3):
        result.forget()
    with spends(GET=1):
        assert not result.ready()


@pytest.mark.parametrize("id", ["", None])
def test_group_without_id(counted, group, id):
    """A group without an id is not saved, and says so."""
    result = group(counted(), 1)
    result.id = id
    with pytest.raises(ValueError, match="group_id must not be empty"):
        result.save()


# -- asked for its state


@pytest.mark.parametrize(
    ("method", "answer"),
    [("ready", True), ("successful", True), ("waiting", False), ("failed", False), ("completed_count", 40)],
)
def test_state_of_a_finished_group(counted, group, spends, proxy, method, answer):
    """Each member is read once, several at the same time, and then no more."""
    result = group(counted(s3_backend_settings={"concurrency": 16}), *range(40))
    proxy.configure(delay=0.1)
    with spends(GET=40):
        assert getattr(result, method)() == answer
    assert proxy.peak() > 8
    with spends():
        assert getattr(result, method)() == answer
        assert result.get() == list(range(40))


@pytest.mark.parametrize(("method", "answer"), [("ready", False), ("successful", False), ("waiting", True)])
def test_state_of_a_running_group(counted, group, stored, spends, method, answer):
    """Where one unfinished member decides, few behind it are read; what has ended since then is seen at once."""
    app = counted()
    late = app.AsyncResult(uuid())
    result = app.GroupResult(uuid(), [late, *group(app, *range(40))])
    for _ in range(3):
        with spends(GET=1):
            assert getattr(result, method)() is answer
    stored(app, 1, id=late.id)
    with spends(GET=41):
        assert getattr(result, method)() is not answer


def test_state_of_a_half_finished_group(counted, group, stored, spends):
    """At most as many members are read behind the first unfinished one as before it, and it is read once."""
    app = counted()
    late = app.AsyncResult(uuid())
    result = app.GroupResult(uuid(), [*group(app, *range(6)), late, *(app.AsyncResult(uuid()) for _ in range(50))])
    with spends(GET=7):
        assert not result.ready()
    with spends(GET=1):
        assert result.waiting()
    stored(app, 1, id=late.id)
    with spends(GET=1 + 2):
        assert not result.ready()


def test_count_of_a_running_group(counted, group, stored, spends):
    """``completed_count()`` and ``failed()`` read each unfinished member once a call."""
    app = counted()
    pending = [app.AsyncResult(uuid()) for _ in range(10)]
    result = app.GroupResult(uuid(), [pending[0], *group(app, *range(10)), *pending[1:]])
    with spends(GET=20):
        assert result.completed_count() == 10
    with spends(GET=10):
        assert not result.failed()
    stored(app, 1, id=pending[0].id)
    stored(app, KeyError(1), states.FAILURE, id=pending[1].id)
    with spends(GET=10):
        assert result.completed_count() == 11
    with spends():
        assert result.failed()
    stored(app, 1, id=pending[2].id)
    with spends(GET=8):
        assert result.completed_count() == 12


def test_state_of_groups_in_groups(counted, group, stored, spends):
    """The members of groups in the group are read with the others; one that is there twice is read once."""
    app = counted()
    inner = group(app, 1, 2, 3)
    result = app.GroupResult(uuid(), [*group(app, 4), inner, app.AsyncResult(inner[0].id)])
    with spends(GET=4):
        assert (result.ready(), result.successful(), result.completed_count()) == (True, True, 3)


def test_state_of_a_member(counted, stored, spends):
    """A member that is asked itself is read alone."""
    app = counted()
    result = app.GroupResult(uuid(), [stored(app, 1), stored(app, 2)])
    with spends(GET=1):
        assert result[1].ready()


def test_state_that_cannot_be_read(counted, group, proxy):
    """An error is raised to who asks for the member that it is about."""
    app = counted()
    result = group(app, *range(4))
    proxy.fail(f"GET {result[2].id}", "access_denied", times=2)
    with pytest.raises(ResultNotRead, match=result[2].id):
        result.ready()
    assert result.ready()


def test_chain_that_ends_in_a_group(counted, stored):
    """``chain(task, group)`` has the failure of its task for its own, as Celery builds it."""
    app = counted()

    @app.task
    def job():
        raise AssertionError("nobody runs this")

    result = celery.chain(job.si(), celery.group(job.si(), job.si())).delay()
    stored(app, KeyError("first"), states.FAILURE, id=result.parent.id)
    with pytest.raises(KeyError, match="first"):
        result.get(timeout=15)
