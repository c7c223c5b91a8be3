"""What a result's parents are asked, with Celery's own results and a backend that counts."""

import pytest
from celery import Celery, states
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult

from celery_s3.celery_private import who_asks
from celery_s3.results.parents import Parents

PENDING = {"status": "PENDING", "result": None}


class Backend:
    """As much of a backend as ``AsyncResult.get()`` needs; ``looks`` parallel reads so far."""

    READY_STATES = states.READY_STATES

    def __init__(self, ready=(), limit=32):
        self.ready = dict.fromkeys(ready, "SUCCESS") if not isinstance(ready, dict) else ready
        self.errors = {}
        self.looks = []
        self.direct = []
        self.now = 0.0
        self.parents = Parents(self.fetch, limit, now=lambda: self.now)

    def fetch(self, ids):
        self.looks.append(list(ids))
        found = {id: {"status": state, "result": None} for id, state in self.ready.items()}
        found |= {id: self.failure(id) for id in self.errors}
        return ((id, found.get(id)) for id in self.looks[-1])

    def get_task_meta(self, task_id, cache=True):
        check = who_asks()
        if check is not None:
            return self.parents.meta(*check, task_id)
        self.direct.append(task_id)
        return self.failure(task_id) if task_id in self.errors else dict(PENDING)

    def failure(self, task_id):
        return {"status": "FAILURE", "result": self.errors[task_id]}

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
            if result.id in self.errors:
                self.parents.failed(self.failure(result.id), on_interval)
                raise self.errors[result.id]
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


# -- whose error is raised when a chord has failed


@pytest.fixture
def failed_chord(app):
    """A backend, and ``body(*behind)``: of a chord whose member m3 has failed, or what is behind it in a chain."""
    backend = Backend()
    chord_error = ChordError("Dependency m3 raised KeyError('gone')")
    backend.errors = {"m3": KeyError("gone"), "body": chord_error, "tail": chord_error}

    def of(*behind):
        members = [AsyncResult(f"m{index}", backend=backend, app=app) for index in range(50)]
        result = GroupResult("g", [GroupResult("inner", members[:10], app=app), *members[10:]], app=app)
        for id in ("body", *behind):
            result = AsyncResult(id, backend=backend, app=app, parent=result)
        return result

    return backend, of


@pytest.mark.parametrize("behind", [(), ("tail",)])
def test_own_error_of_the_member(failed_chord, behind):
    """Who waits for a chord's body gets the error of the member that it names, which alone is read, once."""
    backend, body = failed_chord
    with pytest.raises(KeyError, match="gone"):
        body(*behind).get()
    asked = [id for look in backend.looks for id in look] + backend.direct
    assert [id for id in asked if id.startswith("m")] == ["m3"]


def test_own_error_again(failed_chord):
    """The second get() of a result that is known by now raises the same, as the first one after ready()."""
    _, body = failed_chord
    result = body()
    assert result.ready()
    for _ in range(2):
        with pytest.raises(KeyError, match="gone"):
            result.get()


@pytest.mark.parametrize("how", [{"follow_parents": False}, {"follow_parents": True, "on_interval": lambda: None}])
def test_members_that_are_gone(failed_chord, how):
    """The body's own error is raised where parents are not followed, or the member's result is not there."""
    backend, body = failed_chord
    if how["follow_parents"]:
        del backend.errors["m3"]
    with pytest.raises(ChordError, match="m3"):
        body("tail").get(**how)
    asked = [id for look in backend.looks for id in look] + backend.direct
    assert [id for id in asked if id.startswith("m")] == ["m3"] * how["follow_parents"]


def test_a_group_behind_a_failed_chord(app, failed_chord):
    """Who waits for a group behind a failed chord gets the member's error, too."""
    _, body = failed_chord
    backend = failed_chord[0]
    group = GroupResult("h", [AsyncResult("x", backend=backend, app=app)], parent=body(), app=app)
    with pytest.raises(KeyError, match="gone"):
        backend.parents.watching(group, None)()
