"""S3File: what it takes, what travels in its place, and who gets it; over a bucket in memory."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from celery import Celery, _state
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads

from celery_s3 import S3File, typed
from celery_s3.errors import AccessDenied, ConfigurationError, FileNotRead, FileNotStored, Throttled
from celery_s3.files import file as files_file
from celery_s3.files import objects as files_objects
from celery_s3.files import whose
from celery_s3.files.pointer import Pointer
from celery_s3.files.source import PIECE
from celery_s3.keys import FILES, file_folder
from celery_s3.store.memory import Fault

pytestmark = pytest.mark.usefixtures("no_files_in_use")

DATA = b"%PDF-1.7 " + bytes(range(256)) * 3
SERIALIZERS = ["json", "pickle", "typed+json"]


@pytest.fixture
def make(store):
    """``make(**conf)``: an app over the bucket in memory, the current one of this thread."""
    before, apps = _state._tls.current_app, []

    def app(**conf):
        app = Celery("unit", broker="memory://", set_as_current=False)
        app.conf.update({"result_backend": "celery_s3.backends.S3Backend", "s3_bucket": "memory", **conf})
        app.set_current()
        apps.append(app)
        return app

    yield app
    for one in apps:
        one.close()
    _state._set_current_app(before)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(DATA)
    return path


def sent(value, serializer="json"):
    """A value as it comes out at the other end."""
    content_type, encoding, payload = dumps(value, serializer=serializer)
    return loads(payload, content_type, encoding, accept={content_type})


def objects(store):
    """The keys of the files that are stored."""
    return [key for key in store._objects if key.startswith("celery-files/")]


def read_back(file):
    with file.open() as stream:
        return stream.read()


# -- what it takes


def test_a_path(path):
    """A path tells name, type, size and content, here and now; nothing is read or uploaded before it is asked for."""
    file = S3File(path)
    assert (file.name, file.content_type, file.size) == ("report.pdf", "application/pdf", len(DATA))
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()
    assert repr(file) == f"<S3File {str(path)!r}>"
    assert read_back(S3File(str(path))) == b"".join(file) == DATA


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", "application/json"),
        ("a.tar.gz", "application/gzip"),
        ("a.csv.bz2", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_content_type(name, kind):
    """The type is guessed from the name; what is packed is no longer of the type inside."""
    assert S3File(io.BytesIO(), name=name).content_type == kind


def test_a_file_object(path):
    """A file object is read from where it stands, as often as it can go back there, and never closed."""
    stream = io.BytesIO(b"skipped" + DATA)
    stream.seek(7)
    file = S3File(stream, name="x.bin")
    stream.seek(3)
    assert (file.size, read_back(file), read_back(file)) == (len(DATA), DATA, DATA)
    assert not stream.closed
    with open(path, "rb") as stream:
        assert (S3File(stream).name, S3File(stream).size) == ("report.pdf", len(DATA))


class Pipe(io.RawIOBase):
    """A stream that cannot go back, and gives what it has in small pieces."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(memoryview(buffer)[:100])


def test_a_stream_that_cannot_go_back():
    """Such a stream has no size unless it is told, no name, and is read once."""
    file = S3File(Pipe(DATA))
    assert (file.name, file.size, S3File(Pipe(DATA), size=5).size) == ("", None, 5)
    assert read_back(file) == DATA
    with pytest.raises(FileNotStored, match="the stream <Pipe> can be read once, and was"):
        read_back(file)


def closed(tmp):
    stream = io.BytesIO()
    stream.close()
    return stream


def at_its_end(tmp):
    stream = io.BytesIO()
    stream.write(DATA)
    return stream


def test_the_current_directory(make, store, path, monkeypatch):
    """A relative path is that of where the S3File was made."""
    make()
    monkeypatch.chdir(path.parent)
    file = S3File(path.name)
    (path.parent / "other").mkdir()
    monkeypatch.chdir("other")
    assert read_back(sent(file)) == DATA


@pytest.mark.parametrize(
    ("make_file", "error", "why"),
    [
        (lambda tmp: S3File(tmp / "none"), FileNotFoundError, "none"),
        (lambda tmp: S3File(tmp), IsADirectoryError, "takes a file, and .* is a directory"),
        (lambda tmp: S3File(io.StringIO("x")), TypeError, "open it in mode 'rb'"),
        (lambda tmp: S3File(b"bytes"), TypeError, r"not bytes: write S3File\(io\.BytesIO"),
        (lambda tmp: S3File(closed(tmp)), ValueError, "open for reading, not .*closed file"),
        (lambda tmp: S3File(at_its_end(tmp)), ValueError, r"stands at its end: call `seek\(0\)`"),
        (lambda tmp: S3File(io.BytesIO(), size=-1), ValueError, "size is -1"),
        (lambda tmp: S3File(io.BytesIO(), size="5"), TypeError, "size is '5'"),
        (lambda tmp: S3File(io.BytesIO(), size=4.0), TypeError, "as an int"),
        (lambda tmp: S3File(io.BytesIO(), name="../x"), ValueError, "name is '../x'"),
        (lambda tmp: S3File(io.BytesIO(), name="x" * 256), ValueError, "255 bytes at most"),
        (lambda tmp: S3File(io.BytesIO(), name="\udcff"), ValueError, "name is"),
        (lambda tmp: S3File(io.BytesIO(), content_type="text/plain\r\nx: y"), ValueError, "content_type is"),
    ],
)
def test_what_it_does_not_take(tmp_path, make_file, error, why):
    """What cannot become a file is refused where it is made, in the task's own code."""
    with pytest.raises(error, match=why):
        make_file(tmp_path)


def test_odd_names_of_paths(tmp_path):
    """A path may have any name that its file system has: what cannot travel in it is replaced."""
    odd = os.fsencode(tmp_path) + b"/a\\b\n\xff"
    with open(odd, "wb"):
        pass
    assert S3File(os.fsdecode(odd)).name == "a_b__"


# -- what travels


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_uploaded_once(make, store, path, serializer):
    """A file is uploaded when it is first serialised, and never again, wherever it stands."""
    make()
    file = S3File(path)
    for value in ({"a": file, "b": [file]}, file, (1, file)):
        sent(value, serializer)
    ((verb, key),) = store.requests
    found = store.get(key)
    assert (verb, found.body, found.content_type) == ("PUT", DATA, "application/pdf")
    assert found.metadata == {"celery-file": "report.pdf"}


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_handle(make, store, path, serializer):
    """What arrives is a handle with everything but the content, which is one GET away; decoding makes no request."""
    make()
    file = S3File(path)
    payload = dumps([file], serializer=serializer)
    store.requests.clear()
    (handle,) = loads(payload[2], payload[0], payload[1], accept={payload[0]})
    assert (handle.name, handle.content_type, handle.size) == ("report.pdf", "application/pdf", len(DATA))
    assert handle.sha256 == hashlib.sha256(DATA).hexdigest()
    assert repr(handle).startswith(f"<S3File 'report.pdf', {len(DATA)} bytes, s3://memory/celery-files/")
    assert store.requests == []
    assert read_back(handle) == DATA
    assert [verb for verb, _ in store.requests] == ["GET"]


def test_a_handle_travels_on(make, store, path):
    """A handle that is sent on, copied or stored again is the same object in S3; nothing is uploaded for it."""
    app = make()
    first = sent(S3File(path))
    second = sent(copy.deepcopy([first])[0], "pickle")
    app.backend.store_result("later", second, "SUCCESS")
    assert app.AsyncResult("later").get().pointer() == first.pointer()
    assert len(objects(store)) == 1


def test_copies_upload_nothing(path):
    """A copy of a value that holds a file holds the same file, as Celery makes them of options."""
    file = S3File(path)
    assert copy.copy(file) is file
    assert copy.deepcopy({"x": [file]})["x"][0] is file


def test_many_threads(make, store, path):
    """Threads that serialise the same file at the same moment upload it once."""
    app = make()
    file, pointers = S3File(path), []

    def encode():
        app.set_current()
        pointers.append(file.pointer()["key"])

    threads = [threading.Thread(target=encode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pointers)) == len(objects(store)) == 1


@pytest.mark.parametrize("data", [b"", b"x", b"x" * PIECE, b"x" * (PIECE + 1)])
def test_sizes(make, store, data):
    """An empty file, one piece and a byte more come back as they were, of a known size and of none."""
    make()
    few = data[:1000]
    for source, whole in ((io.BytesIO(data), data), (Pipe(few), few)):
        file = sent(S3File(source))
        assert (file.size, read_back(file)) == (len(whole), whole)
        assert list(file) == [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]


@pytest.mark.parametrize("serializer", ["yaml", "msgpack"])
def test_serializers_that_cannot(make, store, path, serializer):
    """Serializers without a way to name a type refuse a result with a file, and the error names those that can."""
    app = make(result_serializer=serializer, result_accept_content=[serializer])
    with pytest.raises(EncodeError, match=r"S3File.*json, pickle or typed"):
        app.backend.store_result("id", {"file": [S3File(path)]}, "SUCCESS")
    assert objects(store) == []


def test_no_bucket(path):
    """Without a backend of ours nothing can be uploaded, and the error names the remedy."""
    app = Celery("other", broker="memory://", backend="cache+memory://", set_as_current=False)
    before = _state._tls.current_app
    app.set_current()
    try:
        with pytest.raises(ConfigurationError, match=r"not in S3 by celery-s3\. Set `result_backend`"):
            S3File(path).pointer()
    finally:
        _state._set_current_app(before)
        app.close()


def test_of_another_backend(make, path):
    """A handle whose file is in another bucket, or under another prefix, says where both are."""
    make()
    pointer = S3File(path).pointer()
    make(s3_base_path="other/")
    file = S3File.of(pointer)
    with pytest.raises(FileNotRead, match=r"another backend's: .* in s3://memory/other/celery-files/"):
        file.open().read()


def test_the_current_app_is_not_needed(make, path):
    """What is read by a backend, or sent by it, belongs to that backend, whichever app is the current one."""
    app = make()
    app.backend.store_result("id", {"file": S3File(path)}, "SUCCESS")
    make(s3_base_path="other/")
    file = app.AsyncResult("id").get()["file"]
    assert read_back(file) == DATA
    app.backend.on_task_call(None, "task")
    assert S3File(path).pointer()["at"] == "s3://memory/celery-files/"


def test_each_task_has_its_own(make, store, path):
    """A file of the module that many tasks return is an object of each; forgetting one result harms no other."""
    app = make()
    logo = S3File(path)
    for id in ("one", "two"):
        app.backend.store_result(id, logo, "PROGRESS")
        app.backend.store_result(id, [logo, logo], "SUCCESS")
    assert sorted(key.split("/")[1] for key in objects(store)) == ["one", "two"]
    app.AsyncResult("one").forget()
    assert read_back(app.AsyncResult("two").get()[0]) == read_back(logo) == DATA
    app.backend.store_result("three", logo, "SUCCESS")
    assert read_back(app.AsyncResult("three").get()) == DATA


def test_a_call_in_vain_harms_no_result(make, store, path):
    """What a client has sent belongs to no task: it stays when the results of the tasks that got it are forgotten."""
    app = make()
    file = S3File(path)
    handle = sent(file)
    app.backend.store_result("id", file, "SUCCESS")
    app.AsyncResult("id").forget()
    assert read_back(handle) == DATA


def test_a_group_uploads_once(make, store, path, monkeypatch):
    """A client's file is uploaded once for all calls of an hour, and anew for those after it."""
    make()
    file = S3File(path)
    first = {sent(file).pointer()["key"] for _ in range(100)}
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3599)
    assert {sent(file).pointer()["key"]} == first
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert {sent(file).pointer()["key"]}.isdisjoint(first)
    assert len(objects(store)) == 2


def test_a_long_task(make, store, path, monkeypatch):
    """A task of many hours uploads its file once; a retry of it does so again, as the first run's may be forgotten."""
    app = make()
    file, now = S3File(path), time.time()

    @app.task(shared=False)
    def task():
        pass

    task.push_request(id="long", retries=0)
    _state._task_stack.push(task)
    try:
        first = file.pointer()
        monkeypatch.setattr(time, "time", lambda: now + 22 * 3600)
        assert file.pointer() == first
        task.request.retries = 1
        assert file.pointer() != first
    finally:
        _state._task_stack.pop()
        task.pop_request()
    assert [key.split("/")[1] for key in objects(store)] == ["long", "long"]


def test_a_stream_for_two_tasks(make, store):
    """A stream that is spent serves the task that it went with, and the next one's error says what to do."""
    app = make()
    file = S3File(Pipe(DATA))
    app.backend.store_result("one", file, "PROGRESS")
    app.backend.store_result("one", file, "SUCCESS")
    with pytest.raises(EncodeError, match=r"can be read once, and was: each task.*a path, or a file object that"):
        app.backend.store_result("two", file, "SUCCESS")


def test_what_is_remembered_of_a_file(make, store, path, monkeypatch):
    """A file of the module does not grow with the tasks that return it."""
    app = make()
    monkeypatch.setattr(files_file, "_REMEMBERED", 3)
    logo = S3File(path)
    for number in range(9):
        app.backend.store_result(f"id{number}", logo, "SUCCESS")
    assert len(logo._sent) == 3


@pytest.fixture
def two(make):
    """Two apps over the bucket in memory with prefixes of their own; neither is the current one."""
    before = make(), make(s3_base_path="two/")
    make(result_backend="cache+memory://")
    return before


def test_to_whom_it_is_sent(two, store, path):
    """A file goes to the backend of the app that sends it; a call that ignores its result, to the current app's."""
    one, other = two
    file, at = S3File(path, name="same.pdf"), lambda: S3File(path).pointer()["at"]
    other.send_task("task", (file,))
    assert at() == "s3://memory/two/celery-files/"
    one.send_task("task", (file,))
    assert at() == "s3://memory/celery-files/"
    same = {key for key, found in store._objects.items() if found.metadata.get("celery-file") == "same.pdf"}
    assert {key.partition("~sent/")[0] for key in same} == {"celery-files/", "two/celery-files/"}
    other.set_current()
    one.send_task("task", (file,), ignore_result=True)
    assert at() == "s3://memory/two/celery-files/"


def test_reading_sends_nothing_there(two, path):
    """Having read another app's result does not send a file there: the current task's, or app's, backend is asked."""
    one, other = two
    other.backend.store_result("id", 1, "SUCCESS")
    other.AsyncResult("id").get()
    assert S3File(path).pointer()["at"] == "s3://memory/two/celery-files/"  # nobody else is there
    one.set_current()
    assert S3File(path).pointer()["at"] == "s3://memory/celery-files/"


def test_two_servers(make, path):
    """Buckets of one name on two servers are told apart by the endpoint; one server may have two names."""
    settings = {"bucket": "memory", "region": "us-east-1"}
    one = make(s3_backend_settings={**settings, "endpoint_url": "http://minio-1:9000"})
    pointer = S3File(path).pointer()
    assert "minio" not in json.dumps(pointer)
    file = S3File.of(pointer)
    other = make(s3_backend_settings={**settings, "endpoint_url": "http://minio-2:9000"})
    whose.last_used.set(other.backend)
    whose.sending.set((None, None))
    assert S3File.of(pointer)._content._files is other.backend.files  # it may be the same by another name
    one.set_current()
    assert S3File.of(pointer)._content._files is file._content._files is one.backend.files


# -- eager


def test_eager(make, store, path, tmp_path):
    """With `task_always_eager` a file passes through calls and results without any request, and answers all."""
    app = make(task_always_eager=True)

    @app.task(shared=False)
    def first(file):
        assert read_back(file) == DATA
        return {"file": file}

    @app.task(shared=False)
    def second(value):
        return value["file"]

    file = (first.s(S3File(path)) | second.s()).delay().get()
    assert (file.size, file.name, read_back(file)) == (len(DATA), "report.pdf", DATA)
    assert file.download_to(tmp_path / "copy").read_bytes() == DATA
    with pytest.raises(FileNotRead, match=r"no link .* uploaded when its task has returned it"):
        file.url()
    assert store.requests == []


def test_eager_and_stored(make, store, path):
    """`task_store_eager_result` stores the result, so the file is uploaded, under the task's id."""
    app = make(task_always_eager=True, task_store_eager_result=True)

    @app.task(shared=False)
    def report():
        return S3File(path)

    result = report.delay()
    assert read_back(app.AsyncResult(result.id).get()) == DATA
    assert objects(store)[0].startswith(f"celery-files/{result.id}/")


def test_a_foreign_token():
    """A message cannot name a local file: what is no token of this process is a damaged pointer."""
    with pytest.raises(FileNotRead, match="pointer to a file is damaged"):
        S3File.of({"here": "0" * 32}).open()


# -- pointers

POINTER = {
    "key": "task/" + "0" * 32,
    "at": "s3://memory/celery-files/",
    "size": 3,
    "sha256": "a" * 64,
    "name": "x",
    "content_type": "text/plain",
    "sealed": False,
    "server": "0123456789abcdef",
}
BAD = {
    "key": ["../" + "0" * 32, "a/b/" + "0" * 32, "task/" + "0" * 31, "task/" + "0" * 32 + "\n", "/" + "0" * 32, 5],
    "at": [
        None,
        "x" * 3000,
        "s3://" + "x" * 3000,
        "http://x/",
        "s3://x/\n[CRITICAL] forged",
        "s3://\x1b[31m",
        "s3://\u202e",
    ],
    "size": [-1, True, 1.0, "3", 2**60],
    "sha256": ["", "A" * 64, "g" * 64, None],
    "name": ["a/b", "..", "a\x00", "\ud800", "x" * 300, None],
    "content_type": ["", "text", "text/plain\n", None],
    "sealed": [1, None],
    "server": [None, "x", "0" * 17, "0" * 15 + "\n"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_damaged_pointer(make, store, field, value):
    """A pointer that none of ours makes is a handle that says so when it is used, and names no object meanwhile."""
    make()
    file = S3File.of({**POINTER, field: value})
    for use in (lambda: file.size, lambda: file.name, file.open, file.chunks, file.url, lambda: list(file)):
        with pytest.raises(FileNotRead, match="damaged"):
            use()
    assert repr(pickle.loads(pickle.dumps(file))) == repr(file) == "<S3File with a damaged pointer>"
    assert store.requests == []


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_garbage(value):
    """Whatever stands in the place of a pointer: decoding is no error, by no serializer; an error would lose a task."""
    payload = json.dumps({"__type__": "celery_s3.file", "__value__": value})
    assert isinstance(loads(payload, "application/json", "utf-8"), S3File)
    wire = typed.dumps(value)
    if "$type" not in wire:
        assert isinstance(typed.loads(f'{{"$type": "celery_s3.file", "value": {wire}}}'), S3File)


@given(st.text(min_size=1), st.text(min_size=1))
def test_folders(one, other):
    """Every task has a folder of its own, and every key in it is one that a pointer may name."""
    assert (file_folder(one) == file_folder(other)) == (one == other)
    assert FILES.rest.fullmatch(file_folder(one) + "0" * 32)
    assert not file_folder(one).startswith(file_folder(other)) or one == other


def test_pointer_round_trip():
    """A pointer is read as it was written; what a later release adds is no error."""
    assert Pointer.loads(POINTER).dumps() == POINTER
    assert Pointer.loads({**POINTER, "later": 1}).dumps() == POINTER


# -- failures


def test_it_vanishes(make, store, path):
    """A source that is gone when it is serialised fails with its path and the reason; nothing is stored."""
    make()
    file = S3File(path)
    path.unlink()
    with pytest.raises(EncodeError, match=r"report\.pdf' was not stored: No such file"):
        dumps(file, serializer="json")
    assert objects(store) == []


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_another_size(make, store, path, size):
    """A source that turns out longer or shorter than it should be is not stored."""
    make()
    for source in (path, Pipe(DATA), io.BytesIO(DATA)):
        with pytest.raises(FileNotStored, match=f"{size:,} bytes: it was written while it was read, or `size` is"):
            S3File(source, size=size).pointer()
    assert objects(store) == []


def test_written_while_read(make, store, tmp_path):
    """A file that grows while it is uploaded is not stored."""
    make()
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3 * PIECE)
    file, growing = S3File(log), threading.Event()

    def append(verb, key):
        if not growing.is_set():
            growing.set()
            with open(log, "ab") as more:
                more.write(b"x")

    store._before = append
    with pytest.raises(FileNotStored):
        file.pointer()
    assert objects(store) == []


def test_overwritten_while_read(make, store, tmp_path):
    """A file that is overwritten in place while it is uploaded, by as many bytes, is not stored."""
    make()
    data = tmp_path / "data"
    data.write_bytes(b"x" * 3 * PIECE)
    os.utime(data, (1, 1))
    file, written = S3File(data), threading.Event()

    def overwrite(verb, key):
        if not written.is_set():
            written.set()
            with open(data, "r+b") as stream:
                stream.write(b"y" * 3 * PIECE)

    store._before = overwrite
    with pytest.raises(FileNotStored, match=r"was written while it was read\. Return it when it is complete"):
        file.pointer()
    assert objects(store) == []


def test_tried_again(make, store, path):
    """`result_backend_always_retry` tries an upload again after what passes by, not after more; a stream, never."""
    app = make()
    for fault, source, again in (
        (Throttled("", "put", "memory", "key", 503), path, True),
        (AccessDenied("", "put", "memory", "key", 403), path, False),
        (Throttled("", "put", "memory", "key", 503), Pipe(DATA), False),
    ):
        store.faults = [Fault(fault, "PUT")]
        with pytest.raises(EncodeError, match="was not stored: ") as caught:
            app.backend.store_result("id", S3File(source), "SUCCESS")
        assert app.backend.exception_safe_to_retry(caught.value) is again


def test_a_text_stream_in_disguise(make, store):
    """A stream that gives something else than bytes, or nothing for now, is an error that names it."""
    make()

    class Odd:
        def __init__(self, given):
            self.given = given

        def read(self, size):
            return self.given if size else b""

    class Broken:
        def read(self, size):
            return b"" if not size else {}["key"]

    with pytest.raises(FileNotStored, match=r"<Broken> could not be read: KeyError\('key'\)"):
        S3File(Broken()).pointer()
    for found, why in (("text", "gives str in place of bytes"), (None, "gives nothing for now")):
        with pytest.raises(FileNotStored, match=why):
            S3File(Odd(found)).pointer()


def test_not_stored(make, store, path):
    """A file that S3 refuses fails the task, whose error names the file and the remedy; the next try may succeed."""
    app = make()
    store.faults = [Fault(AccessDenied("", "put", "memory", "key", 403), "PUT")]
    file = S3File(path)
    with pytest.raises(EncodeError, match=r"report\.pdf' was not stored: .*access denied"):
        app.backend.store_result("id", file, "SUCCESS")
    app.backend.store_result("id", file, "SUCCESS")
    assert read_back(app.AsyncResult("id").get()) == DATA


def test_a_task_that_returns_what_is_gone(make, store, tmp_path):
    """The task fails, and its failure is stored: who waits for it learns of the path and the reason."""
    app = make()

    @app.task(shared=False)
    def report():
        path = tmp_path / "report.pdf"
        path.touch()
        file = S3File(path)
        path.unlink()
        return file

    from celery.app.trace import build_tracer

    build_tracer(report.name, report, app=app)("id", (), {}, {"id": "id", "task": report.name, "hostname": "here"})
    with pytest.raises(EncodeError, match=r"report\.pdf' was not stored: No such file"):
        app.AsyncResult("id").get(timeout=0)


# -- reading


@pytest.fixture
def remote(make, store, monkeypatch):
    """``remote(data)``: a handle, and the key of its object; pieces are 10 bytes."""
    monkeypatch.setattr(files_objects, "PIECE", 10)
    make()

    def upload(data):
        file = sent(S3File(io.BytesIO(data)))
        store.requests.clear()
        return file, objects(store)[-1]

    return upload


def test_ahead(remote, store):
    """A few pieces are fetched ahead, in order, and no more than that of a file that nobody reads on."""
    file, key = remote(bytes(range(200)))
    chunks = iter(file)
    assert next(chunks) == bytes(range(10))
    assert 2 <= len(store.requests) <= 2 + files_objects.AHEAD
    assert b"".join(chunks) == bytes(range(10, 200))
    assert store.requests == [("GET", key)] * 20


@pytest.mark.parametrize("forged", [bytes(50), bytes(range(49)), bytes(range(51)), b"", bytes(range(49)) + b"x"])
def test_tampered(remote, store, tmp_path, forged):
    """What was changed, cut or exchanged is an error before its last byte is handed out, each time, and no file."""
    data = bytes(range(50))
    file, key = remote(data)
    store.put(key, forged)
    got = bytearray()
    with pytest.raises(FileNotRead, match="is not the file that was stored there"), file.open() as stream:
        while piece := stream.read(3):
            got += piece
    assert len(got) < len(data)
    with file.open() as stream:
        for _ in range(2):
            with pytest.raises(FileNotRead):
                stream.read()
    (tmp_path / "there").write_bytes(b"before")
    with pytest.raises(FileNotRead):
        file.download_to(tmp_path / "there")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("there", b"before")]


def test_replaced_while_read(remote, store):
    """An object that is replaced during a download is an error, whatever it is replaced by."""
    file, key = remote(bytes(100))
    chunks = iter(file)
    next(chunks)
    store.put(key, bytes(99) + b"x")
    with pytest.raises(FileNotRead, match="was replaced while it was read"):
        list(chunks)


def test_gone(remote, store):
    """A file that was forgotten or has expired says so."""
    file, key = remote(b"x")
    store.delete(key)
    with pytest.raises(FileNotRead, match=r"forgotten with .*, has expired \(`result_expires`\), or may not be read"):
        file.open().read()
    with pytest.raises(OSError, match="not there any more"):
        file.open().read(1)


def test_the_reader(remote):
    """The stream reads like any binary one, lines included, and cannot go back."""
    file, _ = remote(b"one\ntwo\n" * 10)
    with file.open() as stream:
        assert (stream.readable(), stream.seekable(), stream.writable()) == (True, False, False)
        assert [stream.readline(), stream.read(2), stream.peek(1)[:1]] == [b"one\n", b"tw", b"o"]
        assert stream.readlines() == [b"o\n"] + [b"one\n", b"two\n"] * 9
        assert stream.read() == b""
    text = io.TextIOWrapper(file.open(), "ascii")
    assert text.readlines()[:2] == ["one\n", "two\n"]


def test_download(remote, tmp_path):
    """The file appears when it is whole, with the mode of any new file, over an old one; progress is told."""
    file, _ = remote(bytes(25))
    told = []
    (tmp_path / "there").write_bytes(b"before")
    (tmp_path / "new").touch()
    assert file.download_to(str(tmp_path / "there"), lambda *done: told.append(done)) == tmp_path / "there"
    assert (tmp_path / "there").read_bytes() == bytes(25)
    assert (tmp_path / "there").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert told == [(10, 25), (20, 25), (25, 25)]


def test_what_is_not_replaced(remote, store, tmp_path):
    """A directory, a pipe and what cannot be written to are refused before a byte is fetched."""
    file, _ = remote(b"x" * 25)
    os.mkfifo(tmp_path / "pipe")
    for target, error in ((tmp_path, IsADirectoryError), ("", IsADirectoryError), (tmp_path / "pipe", OSError)):
        with pytest.raises(error):
            file.download_to(target)
    with pytest.raises(FileNotFoundError):
        file.download_to(tmp_path / "none" / "x")
    assert (store.requests, os.listdir(tmp_path)) == ([], ["pipe"])


def test_download_over_another(remote, tmp_path):
    """The file that is replaced gives its mode on, and a link to it stays."""
    file, _ = remote(b"x" * 25)
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch(mode=0o600)
    link.symlink_to(real)
    assert file.download_to(link) == link
    assert (link.is_symlink(), real.read_bytes(), real.stat().st_mode & 0o777) == (True, b"x" * 25, 0o600)


def test_download_that_ends_early(remote, tmp_path):
    """Whatever ends a download leaves nothing: an error of the caller's, or Ctrl-C."""
    file, _ = remote(bytes(25))
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(done, size, error=error):
            raise error

        with pytest.raises(error):
            file.download_to(tmp_path / "x", fail)
    with pytest.raises(FileNotFoundError):
        file.download_to(tmp_path / "none" / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [7, 25])  # in one piece, in several
@pytest.mark.parametrize("forged", ["size", "sha256", "no file", "gone"])
def test_no_link_to_what_is_not_the_file(remote, store, monkeypatch, size, forged):
    """A pointer that anybody may have written is checked against its object before a link is signed, in one request.

    The hash of a large file alone is not: who reads it by `open()` learns that.
    """
    file, key = remote(bytes(size))
    pointer = dict(file.pointer())
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    if forged == "size":
        pointer["size"] += 1
    elif forged == "sha256":
        pointer["sha256"] = "0" * 64
    elif forged == "no file":
        store.put(key, bytes(size))
    else:
        store.delete(key)
    store.requests.clear()
    found = "is not there any more" if forged == "gone" else "is not the file"
    if forged == "sha256" and size > files_objects.PIECE:
        found = "no link to .* could be made"  # it comes to signing, and this app has nothing to sign with
    with pytest.raises(FileNotRead, match=found):
        S3File.of(pointer).url()
    assert store.requests == [("GET", key)]


@pytest.mark.parametrize("expires", [0, -1, 604801, "3600", None, 1.5])
def test_links_that_live_too_long(remote, expires):
    """A link lives from a second to a week."""
    with pytest.raises(ValueError, match="1 to 604,800 seconds"):
        remote(b"x")[0].url(expires)


# -- processes


def test_nothing_is_loaded_for_it():
    """Every process that has kombu decodes a pointer; a worker without files loads none of this, and no S3 client."""
    code = """
import sys
from kombu.serialization import loads
import celery_s3.backends.s3
light = {name for name in sys.modules if name.startswith("celery_s3.files")}
assert light == {"celery_s3.files", "celery_s3.files.of_tasks", "celery_s3.files.whose"}, light
file = loads('{"__type__": "celery_s3.file", "__value__": {}}', "application/json", "utf-8")
assert type(file).__name__ == "S3File"
heavy = {"boto3", "botocore", "obstore", "cryptography", "celery_s3.files.objects"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_any_process_decodes():
    """A process that uses nothing of this package but has it installed does not lose a message with a file."""
    code = """
from kombu.serialization import loads
file = loads('{"__type__": "celery_s3.file", "__value__": {}}', "application/json", "utf-8")
print(file)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "<S3File with a damaged pointer>\n"


def test_pickled_by_name(make, path):
    """A pickled file names the class by its public module, and holds the pointer alone."""
    make()
    payload = pickle.dumps(S3File(path))
    assert b"celery_s3.files" not in payload
    assert len(payload) < 600
    with suppress(FileNotFoundError):
        path.unlink()
    assert read_back(pickle.loads(payload)) == DATA
