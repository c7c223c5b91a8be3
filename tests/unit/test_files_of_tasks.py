"""The files of a backend's tasks, without a backend: where files go, and deleting them before their result."""

from __future__ import annotations

import io

import pytest
from kombu.exceptions import EncodeError

from celery_s3 import S3File
from celery_s3.bucket import Opened
from celery_s3.errors import AccessDenied, ServerFault, Throttled
from celery_s3.files import whose
from celery_s3.files.of_tasks import REMEMBERED, FilesOfTasks, transient
from celery_s3.metadata import result_metadata
from celery_s3.settings import Settings
from celery_s3.store.counting import Tally
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.uploads import MultipartWriter

pytestmark = pytest.mark.usefixtures("no_files_in_use")


@pytest.fixture
def store():
    return MemoryStore()


def files_of_tasks(store, serializer="json"):
    pool = Pool(1)
    bucket = Opened(store, store, MultipartWriter(store, pool), Tally(), None, pool)
    settings = Settings(bucket="memory", base="base/")
    key_of = lambda id: f"base/meta-{id}"  # noqa: E731
    return FilesOfTasks(bucket, settings, prefix="base/files/", serializer=serializer, key_of=key_of)


@pytest.fixture
def files(store):
    return files_of_tasks(store)


@pytest.fixture
def encoding(monkeypatch):
    """``encoding(payload_of)``: what the serializer makes of the data, in this test."""

    def set_to(payload_of):
        monkeypatch.setattr("celery_s3.files.of_tasks.dumps", lambda data, serializer: payload_of(data))

    return set_to


def keep(store, id, files, state="SUCCESS"):
    """Store a result that says how many files it has."""
    store.put(f"base/meta-{id}", b"{}", metadata=result_metadata(state, files=files))


def upload(files, owner):
    """Upload a file that goes with a task."""
    files.files.put([b"bytes"], owner=owner, size=5, name="name", content_type="text/plain")


def keys(store):
    return [entry.key for entry in store.list("base/files/")]


def made(store):
    requests = [verb for verb, _ in store.requests]
    store.requests.clear()
    return requests


# -- where files go


def test_files_in_a_result_go_with_its_task(files, encoding):
    """While a result's meta is encoded, a file in it goes to this backend and with the result's task."""
    encoding(lambda _: (whose.files_here(), whose.owner_id()))
    assert files.encode({"task_id": "t"}) == (files.files, "t")
    assert whose.storing.get() == (None, None)


def test_files_in_anything_else(files, encoding):
    """What is no result has no task that its files go with."""
    encoding(lambda _: (whose.files_here(), whose.owner_id()))
    assert files.encode(["a part of a chord"]) == (files.files, None)


def test_files_among_arguments(files):
    """A task that is sent by this backend has its files here."""
    files.about_to_send("t")
    assert whose.files_here() is files.files


def test_files_that_were_read(files, store):
    """A file in a result that was read is looked for where the result was."""
    keep(store, "t", 1)
    files.about_to_decode("t", store.get("base/meta-t"))
    assert whose.backend_in_use().files is files.files


@pytest.mark.parametrize("data", [{"result": [S3File(io.BytesIO(b"x"))]}, S3File(io.BytesIO(b"x"))])
def test_a_serializer_that_cannot_hold_files(store, encoding, data):
    """The error names the remedy."""
    encoding(_refuse)
    with pytest.raises(EncodeError, match=r"yaml cannot hold an S3File: no\. Set `result_serializer` to json, pickle"):
        files_of_tasks(store, "yaml").encode(data)


@pytest.mark.parametrize(("serializer", "data"), [("yaml", {"result": object()}), ("json", S3File(io.BytesIO(b"x")))])
def test_other_values_that_cannot_be_encoded(store, encoding, serializer, data):
    """Where no file is the reason, the serializer's error is raised as it is."""
    encoding(_refuse)
    with pytest.raises(EncodeError, match=r"^no$"):
        files_of_tasks(store, serializer).encode(data)


def _refuse(data):
    raise EncodeError("no")


# -- what is known


def test_how_many_files_a_task_has_uploaded(files):
    """This process counts its own uploads."""
    assert files.uploaded == {}
    upload(files, "t")
    upload(files, "t")
    upload(files, "another")
    assert files.uploaded == {"t": 2, "another": 1}


def test_what_is_remembered_is_bounded(files, store):
    """A process that reads millions of results remembers of the last thousands whether they have files."""
    keep(store, "t", 0)
    found = store.get("base/meta-t")
    for number in range(REMEMBERED + 100):
        files.about_to_decode(str(number), found)
    store.requests.clear()
    files.delete(str(REMEMBERED))
    assert made(store) == []
    files.delete("0")
    assert made(store) == ["GET"]


# -- deleting


def test_files_of_a_result_that_was_read(files, store):
    """Its metadata has told how many there are: none cost no request, some a LIST; those of no other task go."""
    for id, count in (("none", 0), ("some", 2)):
        keep(store, id, count)
        files.about_to_decode(id, store.get(f"base/meta-{id}"))
    for owner in ("some", "some", "other"):
        upload(files, owner)
    store.requests.clear()
    files.delete("none")
    assert made(store) == []
    files.delete("some")
    assert made(store) == ["LIST", "DELETE_OBJECTS"]
    assert len(keys(store)) == 1


def test_files_of_a_result_that_was_not_read(files, store):
    """A byte of it tells; where it is gone already, there are none."""
    keep(store, "none", 0)
    keep(store, "some", 1)
    upload(files, "some")
    store.requests.clear()
    files.delete("none")
    assert made(store) == ["GET"]
    files.delete("some")
    assert made(store) == ["GET", "LIST", "DELETE_OBJECTS"]
    files.delete("gone")
    assert made(store) == ["GET"]


def test_a_state_that_is_not_final_tells_nothing_for_long(files, store):
    """More files may come after it was read: it is asked again when the result is forgotten."""
    keep(store, "t", 0, "STARTED")
    files.about_to_decode("t", store.get("base/meta-t"))
    keep(store, "t", 1)
    upload(files, "t")
    files.delete("t")
    assert keys(store) == []


@pytest.mark.parametrize("read", [True, False])
def test_who_may_not_list(files, store, read):
    """Most results that do not tell have no files: to forget them takes no permission to list. Told files do."""
    for id, count in (("untold", None), ("told", 1)):
        keep(store, id, count)
        if read:
            files.about_to_decode(id, store.get(f"base/meta-{id}"))
    store.faults.append(Fault(AccessDenied("no"), verb="LIST", times=-1))
    files.delete("untold")
    with pytest.raises(AccessDenied):
        files.delete("told")


def test_files_that_could_not_be_deleted_can_be_deleted_later(files, store):
    """The error is raised before the result is gone, so that it can be forgotten again."""
    keep(store, "t", 1)
    files.about_to_decode("t", store.get("base/meta-t"))
    upload(files, "t")
    store.faults.append(Fault(ServerFault("down"), verb="DELETE_OBJECTS"))
    with pytest.raises(ServerFault):
        files.delete("t")
    files.delete("t")
    assert keys(store) == []


# -- what may be tried again


def _raised(*errors):
    """The last error, raised while the one before it was handled, and so on."""
    error = errors[0]
    for one in errors[1:]:
        one.__context__ = error
        error = one
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (Throttled("x"), True),
        (AccessDenied("x"), False),
        (KeyError("x"), False),
        (_raised(Throttled("x"), EncodeError("x")), True),
        (_raised(AccessDenied("x"), EncodeError("x")), False),
        (_raised(Throttled("x"), KeyError("x")), False),
    ],
)
def test_what_may_pass(error, passing):
    """A busy or broken server may be better later, also where a file's upload failed inside of kombu's encoder."""
    assert transient(error) is passing
