"""Files as results and arguments on real servers: exact requests, every way through, faults, and deleting them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
from celery import states
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu.exceptions import EncodeError
from kombu.utils.uuid import uuid

from celery_s3 import S3File, claimcheck
from celery_s3.cli import s3
from celery_s3.errors import FileNotRead
from celery_s3.expiry import clock
from celery_s3.files import whose
from celery_s3.operate.budget import Budget
from celery_s3.operate.inventory import Filter, Inventory
from celery_s3.store.clients.control import Control

pytestmark = pytest.mark.usefixtures("no_files_in_use")

MIB = 1024 * 1024
DATA = os.urandom(1024)
LARGE = os.urandom(MIB) * 20 + b"the end"
DAY = 86_400
SEAL = {"seal_keys": [base64.b64encode(b"1" * 32).decode()]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


@pytest.fixture
def report(path):
    """``report(app)``: a task that returns a file."""

    def make(app):
        @app.task(name="report")
        def report():
            return S3File(path)

        return report

    return make


def read_back(file):
    with file.open() as stream:
        return stream.read()


def keys(app):
    """The files that are stored, without the prefix."""
    prefix = app.backend.layout.files
    return sorted(entry.key.removeprefix(prefix) for entry in app.backend.store.list(prefix))


# -- requests


@pytest.mark.parametrize("serializer", ["json", "pickle", "typed+json"])
def test_small(counted, stored, spends, path, serializer):
    """A small file is one PUT more than its result, however often it stands in it, and one GET when it is read."""
    app = counted(result_serializer=serializer, result_accept_content=[serializer])
    file = S3File(path)
    with spends(PUT=2):
        result = stored(app, {"file": file, "again": [file]})
    with spends(GET=1):
        found = result.get()
    assert [found["file"].size, found["again"][0].name] == [len(DATA), "report.pdf"]
    with spends(GET=1):
        assert read_back(found["file"]) == DATA


@pytest.mark.parametrize("seal", [{}, SEAL])
def test_large(counted, stored, spends, proxy, large, tmp_path, seal):
    """20 MiB go up in three parts and come back in three ranges of one version; sealed ones too."""
    app = counted(s3_backend_settings=seal)
    with spends(CreateMultipartUpload=1, UploadPart=3, CompleteMultipartUpload=1, PUT=1):
        result = stored(app, S3File(large))
    file = result.get()
    with spends(GET=3):
        assert file.download_to(tmp_path / "copy").read_bytes() == LARGE
    assert len({record.headers["if-match"] for record in proxy.records()[1:]}) == 1
    assert file.sha256 == hashlib.sha256(LARGE).hexdigest()
    (stored_as,) = app.backend._plain_store.list(app.backend.layout.files)
    assert (stored_as.size == len(LARGE)) is not bool(seal)


def test_a_result_without_files_stays_as_it_was(counted, stored, spends):
    """Storing, fetching and forgetting a plain result asks for no more than before, and says nothing of files."""
    app = counted()
    with spends(PUT=1, GET=1, DELETE=1):
        result = stored(app, {"x": 1})
        result.get()
        assert len(app.backend.files_of_tasks._read) == 1
        result.forget()
    assert len(app.backend.files_of_tasks._read) == 0


def test_a_stream_of_unknown_size(counted, stored):
    """A pipe of a program's output becomes a file, of any size, and has the right one afterwards."""
    code = "import os, sys; [sys.stdout.buffer.write(b'x' * 1048576) for _ in range(33)]"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        file = stored(counted(), S3File(process.stdout, name="log.txt")).get()
    assert (file.size, file.content_type) == (33 * MIB, "text/plain")
    assert read_back(file) == b"x" * 33 * MIB


def test_both_clients(make_app, seaweed, stored, large):
    """Either client stores and gives files, in parts, with type and name, also under the key of an odd id."""
    for client in ("obstore", "boto3"):
        app = make_app(seaweed, s3_backend_settings={"client": client})
        result = stored(app, [S3File(large, content_type="image/png", name="ü.png")], id="a/../b %2F\\ü" + client)
        (file,) = app.AsyncResult(result.id).get()
        assert (read_back(file), file.name, file.content_type) == (LARGE, "ü.png", "image/png")
        app.AsyncResult(result.id).forget()
        assert keys(app) == []


# -- through tasks


def test_the_lifetime_of_the_call(counted, run, report):
    """A task's file is stored under its id, and lives as long as the call says, as its result does."""
    app = counted()
    id = run(report(app), request={"headers": {"result_expires": 60}})
    (name,) = keys(app)
    assert name.startswith(f"{id}/")
    found = app.backend.store.get(app.backend.layout.files + name, length=1)
    assert found.metadata == {"celery-file": "report.pdf", "celery-expires": "60"}
    stored_as = app.backend.store.get(app.backend._full(app.backend.get_key_for_task(id)))
    assert stored_as.metadata["celery-files"] == "1"


@pytest.mark.parametrize("serializer", ["json", "pickle", "typed+json", "s3+json"])
def test_as_an_argument(counted, run, spends, path, serializer):
    """A client's file is uploaded when the call is sent; the worker's main process decodes it without a request."""
    app = counted(task_serializer=serializer, accept_content=[serializer, "json"])
    claimcheck.install(app)
    app.set_current()

    @app.task(name="length")
    def length(files, last):
        return len(read_back(files[0])) + last["file"].size

    with spends(PUT=2):
        length.delay([S3File(path)], last={"file": S3File(io.BytesIO(b"12345"))})
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        queue.declare()
        message = queue.get(no_ack=True, accept=[serializer])
        with spends():
            args, kwargs, _ = message.decode()
        assert repr(args[0][0]).startswith("<S3File 'report.pdf', 1,024 bytes, s3://")
        with spends(GET=1):
            assert length.run(*args, **kwargs) == len(DATA) + 5


def test_a_damaged_pointer_in_a_message(counted, run):
    """The consumer decodes whatever stands there; the task that uses it fails, and its failure can be stored."""
    app = counted()
    damaged = S3File.of({"key": "../../etc/passwd"})

    @app.task(name="use")
    def use(file):
        return file.size

    id = run(use, damaged)
    with pytest.raises(FileNotRead, match="the pointer to a file is damaged: its size is no size"):
        app.AsyncResult(id).get(timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes(counted, proxy, prefix, tmp_path):
    """A file of 160 MiB passes from one process to another, and both need less memory than that, by far."""
    code = """
import io, json, os, sys
from celery import Celery
from celery_s3 import S3File
app = Celery("two")
app.conf.update(json.loads(os.environ["CONF"]))
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
what, path = sys.argv[1:]
if what == "store":
    app.backend.store_result("warm", S3File(io.BytesIO(b"x")), "SUCCESS")
    before = peak()
    app.backend.store_result("id", S3File(path), "SUCCESS")
else:
    app.AsyncResult("warm").get().open().read()
    before = peak()
    app.AsyncResult("id").get().download_to(path)
print(peak() - before)
"""
    app = counted(s3_backend_settings={"concurrency": 2})
    there, back = tmp_path / "there", tmp_path / "back"
    with open(there, "wb") as file:
        file.truncate(160 * MIB)
    conf = {name: app.test_conf[name] for name in ("result_backend", "s3_backend_settings")}
    env = {**os.environ, "CONF": json.dumps(conf)}
    for what, path in (("store", there), ("fetch", back)):
        done = subprocess.run(
            [sys.executable, "-c", code, what, path], env=env, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        # three parts of 8 MiB go up at a time, two come down, and a client may hold each of them twice
        assert int(done.stdout) < 100 * MIB
    assert back.stat().st_size == 160 * MIB


# -- links


def test_url(counted, stored, path, proxy, spends):
    """A link gives the very bytes, with type and name, to anybody; before it is made the file is looked at."""
    file = stored(counted(), S3File(path, name='q"üx.pdf')).get()
    with spends(GET=1):
        url = file.url(60)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == DATA
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.headers["content-disposition"] == 'attachment; filename="q__x.pdf"'


def test_no_url_of_what_is_sealed(counted, stored, path):
    """A sealed file has no link, which would give out what nobody can read; also for a process without keys."""
    app = counted(s3_backend_settings=SEAL)
    file = stored(app, S3File(path)).get()
    for one in (file, S3File.of(file.pointer())):
        with pytest.raises(FileNotRead, match="it is sealed by `seal_keys`"):
            one.url()


# -- forgetting


def test_forget(counted, stored, spends, path):
    """Forgetting a result that was read: its files are listed and deleted, then it; again, it is looked at first."""
    app = counted()
    result = stored(app, [S3File(path), S3File(path)])
    file, _ = result.get()
    with spends(LIST=1, DeleteObjects=1, DELETE=1):
        result.forget()
    assert keys(app) == []
    with pytest.raises(FileNotRead, match="is not there any more: it was forgotten"):
        file.open().read()
    with spends(GET=1, DELETE=1):
        result.forget()


def test_forget_unread(counted, stored, spends, path):
    """Who has not read a result looks first; what is not there, or not finished, or another writer's, is no error."""
    app = counted()
    result = stored(app, S3File(path))
    other = stored(app, 1)
    app.backend.store.put(app.backend._full(app.backend.get_key_for_task("old")), b"{}")
    for id, files in ((result.id, True), (other.id, False), (uuid(), False), ("old", False)):
        with spends(GET=1, DELETE=1, **({"LIST": 1, "DeleteObjects": 1} if files else {})):
            app.AsyncResult(id).forget()
    assert keys(app) == []


def test_forget_a_group(counted, stored, spends, path):
    """What `get_many` has read is known as well."""
    app = counted()
    group = app.GroupResult(uuid(), [stored(app, S3File(path)), stored(app, 1)])
    assert read_back(group.get(timeout=5)[0]) == DATA
    with spends(LIST=1, DeleteObjects=1, DELETE=2):
        group.forget()
    assert keys(app) == []


def test_forget_all_runs(counted, run, report):
    """A task that ran twice has uploaded twice; both files go, and those of no other task, whatever its id."""
    app = counted()
    task = report(app)
    for _ in range(2):
        run(task, id="task")
    for id in ("task/1", "tas", "task1", "~task"):
        run(task, id=id)
    assert len(keys(app)) == 6
    app.AsyncResult("task").forget()
    assert len(keys(app)) == 4


@pytest.mark.parametrize("request_of", [{"retries": 1}, {"delivery_info": {"redelivered": True}}])
def test_forget_after_another_process(counted, stored, spends, path, request_of):
    """What an earlier run has uploaded elsewhere goes too: a rerun says that it does not know, which costs a LIST."""
    app = counted()
    stored(app, {"so far": S3File(path)}, "PROGRESS", id="id")
    app.backend.files_of_tasks.uploaded.pop("id")  # as in another process
    result = stored(app, 1, id="id", **request_of)
    result.get()
    with spends(LIST=1, DeleteObjects=1, DELETE=1):
        result.forget()
    assert keys(app) == []


def test_forgotten_while_it_ends(counted, stored, path, monkeypatch):
    """A task that ends while `forget` looks at its progress keeps its result, and the file that this points to."""
    app = counted()
    file = S3File(path)
    result = stored(app, {"so far": file}, "PROGRESS", id="id")
    store = app.backend.store
    delete = store.delete_unchanged

    def late(versions):
        stored(app, {"so far": file}, id="id")
        return delete(versions)

    monkeypatch.setattr(store, "delete_unchanged", late)
    inventory = Inventory(
        store, app.backend.pool, app.backend.layout, Budget(app.backend.tally, None), files=app.backend.files
    )
    assert list(inventory.forget(Filter(states=frozenset({"progress"})))) == []
    assert read_back(result.get(timeout=5)["so far"]) == DATA


def test_forget_what_was_no_success(counted, stored, spends, proxy, path):
    """A failure that was read does not say that there are no files: a later run's go too."""
    app = counted()
    failed = stored(app, ValueError(), "FAILURE", id="id")
    failed.get(propagate=False)
    stored(app, S3File(path), id="id")
    with spends(LIST=1, DeleteObjects=1, DELETE=1):
        failed.forget()
    assert keys(app) == []
    other = stored(app, ValueError(), "FAILURE", id="other")
    proxy.fail("LIST", "access_denied", times=-1)
    other.forget()  # a failure can be forgotten by who may not list
    proxy.heal()
    assert not app.backend.task_result_exists("other")


def test_forget_that_dies(counted, stored, proxy, path):
    """The files go first: where that fails the result is still there, and can be forgotten again."""
    app = counted()
    result = stored(app, S3File(path))
    proxy.fail("DeleteObjects", "access_denied", times=-1)
    with pytest.raises(Exception, match="access denied"):
        result.forget()
    proxy.heal()
    assert app.AsyncResult(result.id).ready()
    app.AsyncResult(result.id).forget()
    assert keys(app) == []


def test_forget_of_what_was_changed(counted, stored, path):
    """A sealed result that was tampered with can still be forgotten with its files."""
    app = counted(s3_backend_settings=SEAL)
    result = stored(app, S3File(path))
    key = app.backend._full(app.backend.get_key_for_task(result.id))
    found = app.backend._plain_store.get(key)
    app.backend._plain_store.put(key, found.body[::-1], metadata=found.metadata, content_type=found.content_type)
    result.forget()
    assert keys(app) == []


@pytest.fixture
def command(server):
    """``command(app, "forget", "--yes")``: the command in this process, and the requests that it made."""

    def run(app, *arguments):
        server.reset()
        obj = CLIContext(app=app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, arguments, obj=obj, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout, dict(server.counts())

    return run


def test_command_by_id(counted, stored, command, path):
    """`celery s3 forget ID` looks at each, and deletes files and results together."""
    app = counted()
    for id in ("one", "two"):
        stored(app, S3File(path), id=id)
    stored(app, 1, id="plain")
    told, requests = command(app, "forget", "one", "plain", "nope", "--yes")
    assert (told[:16], requests) == ("Forgot 2 results", {"GET": 4, "LIST": 1, "DeleteObjects": 1})
    assert [key.partition("/")[0] for key in keys(app)] == ["two"]


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        (["--state", "SUCCESS"], {"LIST": 3, "GET": 3, "DeleteObjects": 2}),
        (["--older-than", "2100-01-01"], {"LIST": 3, "DeleteObjects": 2}),
    ],
)
def test_command_by_filter(counted, stored, command, path, options, requests):
    """With options the files of what fits go too, in batches; one listing tells which there are."""
    app = counted()
    for id in ("one", "two"):
        stored(app, S3File(path), id=id)
    stored(app, 1, id="plain")
    assert command(app, "forget", *options, "--yes")[1] == requests
    assert keys(app) == []


def test_command_that_is_interrupted(counted, stored, command, proxy, path):
    """The files go before the results that tell of them: after a failure the command is simply run again."""
    app = counted()
    for id in ("one", "two"):
        stored(app, S3File(path), id=id)
    proxy.fail("DeleteObjects", "access_denied", times=1, after=1)
    with pytest.raises(Exception, match="access denied"):
        command(app, "forget", "--older-than", "2100-01-01", "--yes")
    assert app.AsyncResult("one").ready()
    proxy.heal()
    assert command(app, "forget", "--older-than", "2100-01-01", "--yes")[0].startswith("Forgot 2 results")
    assert keys(app) == []


def test_command_does_not_list_files(counted, stored, command, path):
    """Files are no results: `ls` shows the result alone; `show` prints where its file is."""
    app = counted()
    stored(app, {"report": S3File(path)}, id="one")
    assert [one["id"] for one in json.loads(command(app, "ls", "--json")[0])] == ["one"]
    assert "report.pdf" in command(app, "show", "one")[0]
    assert "report.pdf" in command(app, "show", "one", "--json")[0]


# -- expiring


def test_sweep(counted, run, report, command, proxy, monkeypatch):
    """A sweep deletes files a day after their own term or the results'; what else stands there stays."""
    app = counted()
    task = report(app)
    run(task, id="short")
    run(task, id="long", request={"headers": {"result_expires": 9 * DAY}})
    app.backend.store.put(app.backend.layout.files + "mine.txt", b"x")
    monkeypatch.setattr(clock, "server_clock", lambda control: lambda: time.time() + 2 * DAY - 60)
    assert "files" not in command(app, "sweep")[0]
    monkeypatch.setattr(clock, "server_clock", lambda control: lambda: time.time() + 2 * DAY + 60)
    told, _ = command(app, "sweep")
    assert [line.split()[:2] for line in told.splitlines() if line.startswith("files")] == [["files", "1"]]
    assert [key.partition("/")[0] for key in keys(app)] == ["long", "mine.txt"]


def test_rules(counted):
    """The lifecycle rules have one for files, by tag or by prefix; beat's cleanup runs unless there is one."""
    for by_tag in (False, True):
        app = counted(s3_backend_settings={"expiry_tags": by_tag})
        rules = [one for one in app.backend.lifecycle_rules() if app.backend.layout.files in json.dumps(one)]
        assert len(rules) == (12 if by_tag else 2)


def test_tags(moto_s3, make_app, run, report):
    """With `expiry_tags` a file carries its result's tag."""
    app = make_app(moto_s3, s3_backend_settings={"expiry_tags": True})
    task = report(app)
    for term, tag in ((None, "default"), (60, "1")):
        id = run(task, request={"headers": {"result_expires": term}} if term else {})
        (key,) = app.backend.files.keys_of(id)
        found = Control(app.backend.settings)._client.s3.get_object_tagging(Bucket=moto_s3.bucket, Key=key)
        assert [one["Value"] for one in found["TagSet"]] == [tag]


# -- faults


def test_a_slow_server(counted, stored, proxy, large, tmp_path):
    """503, 500, resets and lost answers on the way up and down: the file is whole, once."""
    app = counted()
    for verb in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"):
        proxy.fail(verb, "slow_down", times=1)
    proxy.fail("UploadPart", "reset_after", times=1, after=1)
    file = stored(app, S3File(large)).get()
    proxy.fail("GET", "slow_down", times=2)
    assert file.download_to(tmp_path / "copy").read_bytes() == LARGE
    assert len(keys(app)) == 1


def test_a_lost_answer(counted, stored, proxy, path):
    """A small file whose answer was lost is written again under the same name: there is one."""
    app = counted()
    proxy.fail("PUT", "reset_after", times=1)
    assert read_back(stored(app, S3File(path)).get()) == DATA
    assert len(keys(app)) == 1


def test_refused(counted, run, report, proxy):
    """Where S3 refuses the file the task fails: who waits gets path and remedy, rather than nothing for ever."""
    app = counted(s3_backend_settings={"max_retries": 0, "outage_patience": 0})
    proxy.fail("PUT", "access_denied", times=1)
    id = run(report(app))
    with pytest.raises(EncodeError, match=r"report\.pdf' was not stored: .*access denied.*s3:PutObject"):
        app.AsyncResult(id).get(timeout=5)


def test_killed_in_the_middle(counted, proxy, seaweed, settings_for, prefix, tmp_path):
    """A process that is killed while it uploads leaves no object: parts, which the sweep aborts a day later."""
    code = """
import json, os, sys
from celery import Celery
from celery_s3 import S3File
app = Celery("killed")
app.conf.update(json.loads(os.environ["CONF"]))
class Endless:
    def read(self, size):
        return bytes(size)
app.backend.store_result("id", S3File(Endless()), "SUCCESS")
"""
    app = counted()
    conf = {name: app.test_conf[name] for name in ("result_backend", "s3_backend_settings")}
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CONF": json.dumps(conf)})
    try:
        while proxy.counts()["UploadPart"] < 2:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert keys(app) == []
    control = Control(settings_for(seaweed))
    (left,) = control.uploads(prefix)
    assert left.key.startswith(app.backend.layout.files + "id/")
    control.abort(left)


def test_tampered(counted, stored, path, large):
    """Objects that were exchanged, cut or changed are errors, with seals and without."""
    for seal in ({}, SEAL):
        app = counted(s3_backend_settings=seal)
        one, other = stored(app, [S3File(path), S3File(large)]).get()
        plain = app.backend._plain_store
        prefix = app.backend.layout.files
        small, big = (plain.get(prefix + file.pointer()["key"]) for file in (one, other))
        changed = bytes([small.body[-1] ^ 1])  # sealed bytes are random: any given one may stand there already
        for body in (small.body[:-1], small.body[:-1] + changed, big.body):
            plain.put(small.key, body, metadata=small.metadata, content_type=small.content_type)
            with pytest.raises(FileNotRead):
                read_back(one)
            with pytest.raises(FileNotRead):
                list(one)


def test_sealed_name(counted, stored, path):
    """A sealed file's name is in no metadata; who opens the result has it."""
    app = counted(s3_backend_settings=SEAL)
    result = stored(app, S3File(path))
    (key,) = keys(app)
    assert "report" not in str(app.backend._plain_store.get(app.backend.layout.files + key).metadata)
    assert result.get().name == "report.pdf"


def test_without_the_keys(counted, stored, path):
    """A process without `seal_keys` can neither read a sealed file nor a plain one where seals are required."""
    sealed, plain = counted(s3_backend_settings=SEAL), counted()
    for writer, reader, why in ((sealed, plain, "needs the `seal_keys`"), (plain, sealed, "is not sealed")):
        pointer = stored(writer, S3File(path)).get().pointer()
        whose.last_used.set(reader.backend)
        with pytest.raises(FileNotRead, match=why):
            read_back(S3File.of(pointer))


def test_no_secret(counted, stored, path, server):
    """Neither repr nor pointer nor error tells a secret."""
    app = counted(s3_backend_settings=SEAL)
    file = stored(app, S3File(path)).get()
    app.backend.store.delete(app.backend.layout.files + file.pointer()["key"])
    told = repr(file) + json.dumps(file.pointer())
    with suppress(FileNotRead):
        read_back(file)
    with pytest.raises(FileNotRead) as caught:
        read_back(file)
    told += str(caught.value) + repr(caught.value)
    for secret in (server.secret_key, *SEAL["seal_keys"]):
        assert secret not in told


def test_states(counted, stored, path):
    """Progress, failures and a saved state may hold files too."""
    app = counted()
    id = uuid()
    result = stored(app, {"so far": S3File(path)}, "PROGRESS", id=id)
    assert read_back(result.info["so far"]) == DATA
    stored(app, S3File(path), states.SUCCESS, id=id)
    app.AsyncResult(id).forget()
    assert keys(app) == []


# -- the other commands


def test_commands_fetch_files(counted, stored, command, path, tmp_path):
    """`show --output` writes the file and not its pointer, `ls` adds its bytes, JSON tells what it is."""
    app = counted()
    one = stored(app, S3File(path))
    target = tmp_path / "fetched"
    command(app, "show", one.id, "--output", str(target))
    assert target.read_bytes() == DATA
    command(app, "show", one.id, "--raw", "--output", str(target))
    assert json.loads(target.read_bytes())["task_id"] == one.id
    (row,) = json.loads(command(app, "ls", "--json")[0])
    assert row["files"] == {"count": 1, "bytes": len(DATA)}
    assert "KB (1 file)" in command(app, "ls")[0]
    record = json.loads(command(app, "show", one.id, "--json")[0])["result"]
    digest = hashlib.sha256(DATA).hexdigest()
    about = {"type": "S3File", "name": "report.pdf", "size": 1024, "content_type": "application/pdf", "sha256": digest}
    assert record == about
    shown = command(app, "show", one.id)[0]
    assert '"name": "report.pdf"' in shown
    assert "--output FILE fetches the file" in shown


def test_commands_fetch_several_files(counted, stored, command, path, tmp_path):
    """Several files of a result go into a folder that exists, none over the other."""
    app = counted()
    one = stored(app, {"first": S3File(path), "second": [S3File(io.BytesIO(b"other"), name="report.pdf")]})
    obj = CLIContext(app=app, no_color=True, workdir=None)
    told = CliRunner().invoke(s3, ["show", one.id, "--output", str(tmp_path / "new")], obj=obj)
    assert told.exit_code == 1
    assert "There are 2 files: report.pdf, report.pdf. Name a folder that exists." in told.stderr
    folder = tmp_path / "folder"
    folder.mkdir()
    command(app, "show", one.id, "--output", str(folder))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "report.pdf": DATA,
        "2-report.pdf": b"other",
    }


@pytest.mark.parametrize(
    ("name", "written"),
    [(".bashrc", "bashrc"), ("...", "file"), ("Makefile", "2-Makefile"), ("link", "2-link"), ("a\u202eb", "a\u202eb")],
)
def test_names_that_others_have_chosen(counted, stored, tmp_path, name, written):
    """A file comes into a folder over nothing that is there, as no hidden one, and its name sends nothing odd."""
    app = counted()
    one = stored(app, S3File(io.BytesIO(b"theirs"), name=name))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "Makefile").write_bytes(b"mine")
    (folder / "link").symlink_to(tmp_path / "nowhere")
    obj = CLIContext(app=app, no_color=True, workdir=None)
    done = CliRunner().invoke(s3, ["show", one.id, "--output", str(folder)], obj=obj, catch_exceptions=False)
    assert (folder / written).read_bytes() == b"theirs"
    assert (folder / "Makefile").read_bytes() == b"mine"
    assert sorted(file.name for file in folder.iterdir()) == sorted({"Makefile", "link", written})
    assert "\u202e" not in done.output


def test_commands_link_to_files(make_app, seaweed, stored, path):
    """`url` links to the file; of a sealed result there is none, unless the sealed bytes are asked for."""
    app = make_app(seaweed)
    obj = CLIContext(app=app, no_color=True, workdir=None)
    one = stored(app, [S3File(path)])
    done = CliRunner().invoke(s3, ["url", one.id], obj=obj, catch_exceptions=False)
    assert urllib.request.urlopen(done.stdout.strip()).read() == DATA
    assert "can read the 1 file (1.0 KB) until" in done.stderr
    sealed = make_app(seaweed, s3_backend_settings=SEAL)
    two, obj = stored(sealed, "secret"), CLIContext(app=sealed, no_color=True, workdir=None)
    done = CliRunner().invoke(s3, ["url", two.id], obj=obj)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "it is sealed by `seal_keys`" in done.stderr
    done = CliRunner().invoke(s3, ["url", two.id, "--raw"], obj=obj)
    assert b"secret" not in urllib.request.urlopen(done.stdout.strip()).read()
    assert "nothing more without `seal_keys`" in done.stderr
