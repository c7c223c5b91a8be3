"""Any id that Celery lets through is stored under a key of its own, or refused with a word about why."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from kombu.utils.uuid import uuid

from celery_s3.errors import ResultNotStored

ODD = [
    "p/q/r",
    "/a",
    "a/",
    "b//c",
    "//",
    "/",
    ".",
    "..",
    "c/../b",
    "../../etc/passwd",
    "./a",
    "d/.",
    "100%",
    "%2F",
    "%",
    "%25",
    "a%00b",
    "back\\slash",
    "new\nline",
    "nul\x00",
    "tab\t",
    "del\x7f",
    "nel\x85",
    "  two  spaces  ",
    " ",
    "a+b&c=d?e#f",
    "a;b,c:d@e",
    "'\"<>`{}|^~*()[]!$",
    "ünïcödé",
    "cafe\u0301",
    "caf\u00e9",
    "日本語",
    "😀",
    "\ufffe\uffff",
    "x-amz-meta: evil\r\nHost: evil",
    "celery-s3-probe",
    "A",
    "a",
]


@pytest.mark.parametrize("client", ["obstore", "boto3"])
def test_odd_ids(make_app, seaweed, stored, client):
    """Every id, however odd, has a result of its own, that either client stores and the other one finds."""
    app = make_app(seaweed, s3_backend_settings={"client": "auto" if client == "obstore" else client})
    other = make_app(seaweed, s3_backend_settings={"client": "boto3" if client == "obstore" else "auto"})
    for number, id in enumerate(ODD):
        stored(app, [number, id], id=id)
    for number, id in enumerate(ODD):
        assert other.AsyncResult(id).get(timeout=5) == [number, id], id
    assert {id for id, _ in other.backend.get_many(ODD, timeout=5)} == set(ODD)
    for id in ODD[::2]:
        other.AsyncResult(id).forget()
    assert [app.backend.task_result_exists(id) for id in ODD] == [False, True] * (len(ODD) // 2)


def test_odd_group_ids(make_app, seaweed, stored):
    """So has every group, and its members' ids come back as they were."""
    app = make_app(seaweed)
    for id in ODD:
        group = app.GroupResult(id, [app.AsyncResult(f"{id}{id}"), app.AsyncResult(id)])
        group.save()
        assert app.GroupResult.restore(id, app=app, backend=app.backend) == group


def test_odd_children(make_app, seaweed, stored):
    """Children with odd ids are known from a large result's head as from its body."""
    app = make_app(seaweed)
    children = [app.AsyncResult(id) for id in ODD[:12]]
    for value in ("small", "x" * 100_000):
        result = stored(app, value, _children=children)
        assert result.children == children
        assert result.get() == value


def test_odd_task_names_and_states(make_app, seaweed, stored):
    """Task names and states never break a request, whatever is in them."""
    app = make_app(seaweed)
    for text in ODD:
        result = stored(app, {}, f"{text}!", task=text)
        assert app.AsyncResult(result.id).state == f"{text}!"


def test_uuid_objects_and_bytes(counted, stored, spends):
    """A UUID object and its text are one id, and so are bytes and their text."""
    app, id = counted(), uuid4()
    assert isinstance(id, UUID)
    stored(app, "by object", id=id)
    assert app.AsyncResult(str(id)).get(timeout=5) == "by object"
    assert app.AsyncResult(id).get(timeout=5) == "by object"
    with spends(GET=1):
        assert [meta["result"] for _, meta in app.backend.get_many([id], timeout=5)] == ["by object"]
    assert app.GroupResult("g", [app.AsyncResult(id)]).get(timeout=5) == ["by object"]
    text = uuid()
    stored(app, "by bytes", id=text.encode())
    assert app.AsyncResult(text).get(timeout=5) == "by bytes"
    app.AsyncResult(id).forget()
    assert app.AsyncResult(str(id)).state == "PENDING"


def test_long_ids(make_app, moto_s3, stored):
    """900 characters are an id like any other, where the server takes them, as AWS does."""
    app = make_app(moto_s3)
    assert stored(app, 1, id="x" * 900).get(timeout=5) == 1


def test_id_that_begins_another(make_app, seaweed, stored):
    """An id may be the beginning of another one's path; a server that cannot have both is named for it."""
    app = make_app(seaweed)
    stored(app, "short", id="job")
    assert stored(app, "long", id="job/1").get(timeout=5) == "long"
    assert app.AsyncResult("job").get(timeout=5) == "short"
    stored(app, "long", id="other/1")
    with pytest.raises(ResultNotStored, match="another id begin"):
        stored(app, "short", id="other")


@pytest.mark.parametrize(
    ("id", "why"), [("x" * 1025, "1024"), ("é" * 600, "1024"), ("", "empty"), ("\ud800", "surrogate")]
)
def test_impossible_ids(counted, stored, spends, id, why):
    """An id that no key can hold is refused, at the first use and without a request; it never reads as PENDING."""
    app = counted()
    with spends():
        for use in (
            lambda: app.backend.get_task_meta(id),
            lambda: app.AsyncResult(id).get(timeout=0),
            lambda: app.AsyncResult(id).state,
            lambda: app.AsyncResult(id).forget(),
            lambda: list(app.backend.get_many([id], timeout=0)),
            lambda: app.GroupResult.restore(id, app=app, backend=app.backend),
        ):
            with pytest.raises(ValueError, match=why):
                use()
        with pytest.raises(ResultNotStored if id else ValueError, match=why):
            app.backend.store_result(id, 1, "SUCCESS")


def test_id_that_the_server_finds_too_long(counted, stored, proxy):
    """What a server's own limit refuses is an error with its words, not a lost result."""
    with pytest.raises(ResultNotStored, match="too long"):
        stored(counted(), 1, id="x" * 900)


def test_no_id(counted):
    """None is no id."""
    with pytest.raises(ValueError, match="valid id"):
        counted().AsyncResult(None)


def test_state_without_id(counted, spends):
    """A task that was called as a function has no id, and its `update_state` is the ValueError that it is in Celery."""
    app = counted()

    @app.task(bind=True)
    def job(self):
        self.update_state(state="PROGRESS", meta={})

    with spends(), pytest.raises(ValueError, match=r"task_id must not be empty\. Got None"):
        job()
