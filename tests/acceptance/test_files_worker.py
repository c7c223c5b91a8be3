"""Files through a real worker: chains, chords, groups, callbacks, and what goes wrong."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from celery import chain, chord, group
from kombu.exceptions import EncodeError
from logs import complaints

from celery_s3 import S3File
from celery_s3.errors import FileNotRead

TASKS = Path(__file__).with_name("files_tasks.py")
#: Seconds that an answer may take; only a hang takes them.
SOON = 30


def content(file):
    with file.open() as stream:
        return stream.read()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_files(make_app, seaweed, worker, eventually, tmp_path, serializer):
    """A file passes from task to task and to the client: each is uploaded once, and forgotten with its task."""
    conf = {"task_serializer": serializer, "result_serializer": serializer, "accept_content": [serializer]}
    app = make_app(seaweed, broker="sqs", **conf)
    one = worker(app, TASKS, env={"C_FORCE_ROOT": "1"})
    make, upper = app.signature("make", ("abc",)), app.signature("upper")

    chained = chain(make, upper).apply_async()
    found = chained.get(timeout=SOON)
    assert (content(found["before"]), content(found["after"][0])) == (b"abc", b"ABC")
    assert (found["after"][0].name, found["before"].content_type) == ("upper.txt", "text/plain")

    header = [app.signature("make", (text, 1_500_000)) for text in ("one\n", "two\n", "three\n")]
    body = app.signature("joined", kwargs={"last": S3File(io.BytesIO(b"the client's"))})
    result = chord(header, body, app=app).apply_async()
    whole = result.get(timeout=SOON)
    assert content(whole) == b"one\n" * 1_500_000 + b"two\n" * 1_500_000 + b"three\n" * 1_500_000 + b"the client's"

    members = group(app.signature("make", (text,)) for text in "xyz").apply_async()
    assert [content(file) for file in members.get(timeout=SOON)] == [b"x", b"y", b"z"]

    copy = tmp_path / "copy"
    make.clone().apply_async(link=app.signature("told", (str(copy),)))
    assert eventually(lambda: copy.exists() and copy.read_bytes(), SOON) == b"abc"

    for forgotten in (chained, members, result):
        forgotten.forget()
    prefix = app.backend.layout.files
    left = [entry.key.removeprefix(prefix).partition("/")[0] for entry in app.backend.store.list(prefix)]
    gone = [chained.id, chained.parent.id, result.id, *(member.id for member in members.results)]
    assert not set(left) & set(gone)
    assert complaints(one.log, "No hostname was supplied", "superuser privileges", "Please specify") == []


def test_what_goes_wrong(make_app, seaweed, worker):
    """A file that cannot be read, and a damaged pointer in a message, fail their task with the reason; no other."""
    app = make_app(seaweed, broker="sqs")
    one = worker(app, TASKS, concurrency=1)
    with pytest.raises(EncodeError, match=r"gone\.txt' was not stored: No such file"):
        app.send_task("broken").get(timeout=SOON)
    file = S3File(TASKS)
    assert app.send_task("size", (file,)).get(timeout=SOON) == TASKS.stat().st_size
    damaged = {"__type__": "celery_s3.file", "__value__": {**file.pointer(), "key": "../celery-task-meta-x"}}
    with pytest.raises(FileNotRead, match="the pointer to a file is damaged: its key is none"):
        app.send_task("size", (damaged,)).get(timeout=SOON)
    assert one.running
