"""What a result's parents are asked, with Celery's own results and a backend that counts."""

import pytest
from celery import Celery, states
from celery.result import AsyncResult, GroupResult

from celery_s3.celery_private import who_asks
from celery_s3.results.parents import Parents

PENDING = {"status": "PENDING", "result": None}


class Backend:
    """As much of a backend as ``AsyncResult.get()`` needs; ``looks`` parallel reads so far."""

    def __init__(self, ready=(), limit=32):
        self.ready = dict.fromkeys(ready, "SUCCESS") if not isinstance(ready, dict) else ready
        self.looks = []
        self.direct = []
        self.now = 0.0
        self.parents = Parents(self.fetch, limit, now=lambda: self.now)

    def fetch(self, ids):
        self.looks.append(list(ids))
        return ((id, {"status": self.ready[id], "result": None} if id in self.ready else None) for id in ids)

    def get_task_meta(self, task_id, cache=True):
        check = who_asks()
        if check is not None:
            return self.parents.meta(*check, task_id)
        self.direct.append(task_id)
        return dict(PENDING)

    def meta_from_decoded(self, meta):
        return meta

    def add_pending_result(self, result, weak=False):
        pass

    def remove_pending_result(self, result):
        pass

    def wait_for_pending(self, result, on_interval, **kwargs):
        """Three looks in vain."""
        with self.parents.waiting(result.id, None):
            for _ in range(3):
                on_interval()
        return "waited"


@pytest.fixture
def app():
    app = Celery("parents", set_as_current=False, backend="disabled")
    yield app
    app.close()


def chain_of(app, backend, *ids):
    result = None
    for id in ids:
        result = AsyncResult(id, backend=backend, app=app, parent=result)
    return result


def test_chain(app):
    """Before the wait all parents are read at once; during it only the earliest unfinished one is asked."""
    backend = Backend()
    assert chain_of(app, backend, "a", "b", "c", "d").get() == "waited"
    assert backend.looks == [["a", "b", "c"], ["a"], ["a"], ["a"]]
    assert backend.direct == []


def test_chain_moves_on(app):
    """A parent that is finished is not asked again, the next one is."""
    backend = Backend(ready=["a"])
    chain_of(app, backend, "a", "b", "c", "d").get()
    assert backend.looks == [["a", "b", "c"], ["b"], ["b"], ["b"]]


def test_header_is_not_asked(app):
    """The members of a chord's header are not asked: their failure reaches the body."""
    backend = Backend()
    header = GroupResult("g", [AsyncResult(f"m{index}", backend=backend, app=app) for index in range(50)], app=app)
    AsyncResult("body", backend=backend, app=app, parent=header).get()
    assert [id for look in backend.looks for id in look] == []
    assert backend.direct == []


def test_failed_parent_is_raised(app):
    """A parent's failure is raised before the wait."""
    backend = Backend(ready={"a": states.FAILURE})
    backend.fetch = lambda ids: iter([("a", {"status": "FAILURE", "result": KeyError("gone")})])
    backend.parents._fetch = backend.fetch
    with pytest.raises(KeyError, match="gone"):
        chain_of(app, backend, "a", "b").get()


def test_at_most_so_many_before_the_wait(app):
    """A chain of hundreds is not read to its end before the wait."""
    backend = Backend(limit=5)
    chain_of(app, backend, *(f"t{index}" for index in range(100))).get()
    assert backend.looks[0] == ["t0", "t1", "t2", "t3", "t4"]
    assert len(backend.looks) == 4


def test_answers_are_remembered_for_a_second(app):
    """A check a moment later is answered from memory, one after a second is not."""
    backend = Backend()
    result = chain_of(app, backend, "a", "b", "c")
    result._maybe_reraise_parent_error()
    result._maybe_reraise_parent_error()
    assert len(backend.looks) == 1
    backend.now = 1.5
    result._maybe_reraise_parent_error()
    assert len(backend.looks) == 2


def test_other_questions_are_answered_plainly(app):
    """A state that somebody asks for is looked up, also from a function that happens to run in between."""
    backend = Backend()
    result = chain_of(app, backend, "a", "b")
    assert result.parent.state == "PENDING"
    assert backend.direct == ["a"]
    assert backend.looks == []
