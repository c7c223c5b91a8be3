"""`celery s3 ls`, `show`, `forget`, `wait` and `url`: in memory, and on a real server where that matters."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter

import pytest
from celery import states
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.cli import s3

MODULE = """
import json, os
from celery import Celery
app = Celery("proj")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))
"""

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 3, in f\nValueError: no good'


class Proj:
    """An app on a server that counts requests, and the command."""

    def __init__(self, app, server, folder, stored):
        self.app = app
        self.backend = app.backend
        self.server = server
        self.folder = folder
        self.store = lambda value, state="SUCCESS", **more: stored(app, value, state, **more)
        (folder / "proj.py").write_text(MODULE)
        self.env = {**os.environ, "CELERY_S3_TEST_CONF": json.dumps(app.test_conf), "COLUMNS": "80"}

    def run(self, *arguments, input=None):
        """The command in this process; what it asked of S3 is in ``requests``."""
        self.server.reset()
        obj = CLIContext(app=self.app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, [str(argument) for argument in arguments], obj=obj, input=input)
        done.requests = dict(self.server.counts())
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def json(self, *arguments):
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def put(self, id, body, content_type="application/json", metadata=None):
        """An object as another program may have put it there."""
        key = self.backend._full(self.backend.get_key_for_task(id))
        self.backend.store.put(key, body, content_type=content_type, metadata=metadata)

    def exists(self, id):
        return self.backend.task_result_exists(id)

    def command(self, *arguments):
        return [sys.executable, "-m", "celery", "-A", "proj", "s3", *arguments]

    def terminal(self, *arguments, answer=""):
        """What the command prints on a terminal, and its exit code."""
        ours, theirs = pty.openpty()
        env = self.env | {"TERM": "xterm"}
        process = subprocess.Popen(
            self.command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, cwd=self.folder, env=env
        )
        os.close(theirs)
        os.write(ours, answer.encode())
        told = b""
        try:
            while chunk := os.read(ours, 4096):
                told += chunk
        except OSError:
            pass
        code = process.wait(30)
        os.close(ours)
        return told.decode(), code


@pytest.fixture
def proj(counted, server, tmp_path, stored):
    app = counted(result_extended=True)
    return Proj(app, server, tmp_path, stored)


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


# -- ls


def test_ls(proj):
    """A line for each result: id, state, task, age, size; nothing is decoded; one LIST, and a GET for each."""
    proj.store({"password": "hush"}, id="one")
    proj.store(ValueError("hush"), states.FAILURE, id="two", task="proj.tasks.other")
    proj.put("garbage", b"\x80hush", "application/x-python-serialize")
    done = proj.run("ls")
    assert done.requests == {"LIST": 1, "GET": 3}
    head, *rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    assert head == ["ID", "STATE", "TASK", "AGE", "SIZE"]
    told = {row[0]: row[1:3] for row in rows}
    assert told == {
        "one": ["SUCCESS", "proj.tasks.job"],
        "two": ["FAILURE", "proj.tasks.other"],
        "garbage": ["?", "?"],
    }
    assert re.fullmatch(r"3 shown of 3 results in s3://\w+/test-\w+/, \d+ B in all\.\n", done.stderr)
    assert "hush" not in done.output


def test_ls_json(proj, proxy):
    """The records have these names and types; standard output has nothing else."""
    proj.store(1, id="one")
    (record,) = proj.json("ls")
    age, stored, size, _ = (record.pop(name) for name in ("age", "stored", "size", "expires"))
    assert 0 <= age < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", stored)
    assert 100 < size < 500
    key = proj.backend._full(proj.backend.get_key_for_task("one"))
    assert record == {
        "id": "one",
        "state": "SUCCESS",
        "task": "proj.tasks.job",
        "files": None,
        "storage_class": "STANDARD",
        "key": key,
    }
    assert proj.json("ls", "--state", "FAILURE") == []


def test_ls_filters(proj):
    """--state, --task, --since, --older-than and --limit go together; states in any case, more than one."""
    proj.store(1, id="one")
    proj.store(2, states.RETRY, id="two")
    time.sleep(1.1)
    proj.store(ValueError(), states.FAILURE, id="three", task="proj.mail.send")

    def listed(*arguments):
        return [record["id"] for record in proj.json("ls", *arguments)]

    assert listed()[0] == "three"
    assert listed("--limit", 1) == ["three"]
    assert set(listed("--state", "success", "--state", "RETRY")) == {"one", "two"}
    assert listed("--task", "proj.mail.*") == ["three"]
    assert listed("--task", "proj.tasks.job", "--state", "RETRY") == ["two"]
    assert set(listed("--since", "1h")) == {"one", "two", "three"}
    assert listed("--since", "2100-01-01") == listed("--older-than", "1h") == []
    assert len(listed("--older-than", "2100-01-01")) == 3
    assert proj.run("ls", "--since", "tomorrow").exit_code == 2


def test_ls_tells_what_has_expired(proj):
    """An expired result, which reads as missing, is listed as such until it is deleted."""
    proj.put("one", b"{}", metadata={"celery-state": "SUCCESS", "celery-expires": "0.001"})
    proj.store(1, id="two")
    time.sleep(1.1)
    lines = [re.split(r"\s{2,}", line)[:2] for line in proj.run("ls").stdout.splitlines()[1:]]
    assert sorted(lines) == [["one", "SUCCESS (expired)"], ["two", "SUCCESS"]]
    assert proj.run("show", "one").exit_code == 1


def test_ls_asks_before_it_gets_expensive(proj, monkeypatch):
    """More requests than a thousand (here: two): elsewhere than on a terminal --yes is needed, and they are told."""
    monkeypatch.setattr("celery_s3.operate.budget.FREE", 2)
    for number in range(4):
        proj.store(number)
    done = proj.run("ls")
    assert (done.exit_code, done.stdout, done.requests) == (1, "", {"LIST": 1})
    assert "This has taken 2 requests" in done.stderr
    assert "say --yes" in done.stderr
    done = proj.run("ls", "--yes")
    assert (done.exit_code, done.requests) == (0, {"LIST": 1, "GET": 4})
    assert "This has taken 2 requests" in done.stderr


def test_ids_cannot_play_with_the_terminal(proj):
    """Control characters of an id are shown, not sent, by every command and in every error."""
    evil = "e\x1b[2Jvil\u202e"
    proj.store(1, id=evil, task="t\x1bask")
    proj.put("bad" + evil, b"{", "application/json")
    for arguments in (
        ["ls"],
        ["show", evil],
        ["show", "not" + evil],
        ["show", "bad" + evil],
        ["wait", evil],
        ["wait", "not" + evil, "--timeout", "0s"],
        ["url", "not" + evil],
        ["forget", "--yes", evil],
        ["wait", evil * 500],
    ):
        done = proj.run(*arguments)
        assert not {"\x1b", "\u202e"} & set(done.output), done.output


# -- show


def test_show(proj, proxy):
    """Everything that is known, then the value; a GET, and a LIST for the storage class."""
    request = {"args": [1, "a"], "kwargs": {"b": 2}, "hostname": "here", "parent_id": "mother", "group": "crowd"}
    proj.store({"n": [1, 2]}, id="one", **request)
    done = proj.run("show", "one")
    assert done.requests == {"GET": 1, "LIST": 1}
    about, _, value = done.stdout.partition("\n\n")
    fields = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in about.splitlines())
    assert json.loads(value) == {"n": [1, 2]}
    expected = {
        "id": "one",
        "state": "SUCCESS",
        "task": "proj.tasks.job",
        "storage class": "STANDARD",
        "content type": "application/json",
        "args": '[1, "a"]',
        "kwargs": '{"b": 2}',
        "worker": "here",
        "parent": "mother",
        "group": "crowd",
    }
    assert expected.items() <= fields.items()
    assert re.fullmatch(r"\d{4}-.* UTC, (\d+ s|1 m) ago", fields["stored"])
    assert re.fullmatch(r"\d{4}-.* UTC, in (23 h 59 m|1 d)", fields["expires"])
    assert fields["key"].startswith(f"s3://{proj.backend.settings.bucket}/")
    assert fields["key"].endswith("celery-task-meta-one")


def test_show_json(proj):
    """The same for programs; children are told by their ids, an error by type and message."""
    proj.store(ValueError("no good"), states.FAILURE, id="one", _children=[proj.app.AsyncResult("child")])
    record = proj.json("show", "one")
    assert record["state"] == "FAILURE"
    assert record["result"] == {"type": "ValueError", "message": "no good"}
    assert record["children"] == ["child"]
    assert record["done"].endswith("+00:00")
    assert record["traceback"] is None


def test_show_failure(proj):
    """Of a failed task its traceback is shown, and the exit code is 0: the command has done its work."""
    proj.backend.store_result("one", ValueError("no good"), states.FAILURE, traceback=TRACEBACK)
    done = proj.run("show", "one")
    assert done.exit_code == 0
    assert done.stdout.endswith(f"\n\n{TRACEBACK}\n")
    proj.backend.store_result("two", ValueError("no good"), states.FAILURE)
    assert proj.run("show", "two").stdout.endswith("\n\nValueError: no good\n")


def test_show_nothing(proj):
    """Nothing stored, or expired: one line says so, and the exit code is 1."""
    done = proj.run("show", "nope")
    assert (done.exit_code, done.stdout, done.requests) == (1, "", {"GET": 2})
    assert done.stderr.startswith("Error: There is no result of nope in celery-s3://")
    proj.store(1, id="one")
    proj.backend.results.now = lambda: time.time() + 200_000
    assert "There is no result of one" in proj.run("show", "one").stderr
    assert proj.run("show", "").exit_code == 1


def test_show_what_cannot_be_decoded(proj):
    """What is known is shown, the reason is told, the exit code is 1; --raw and --output still give the bytes."""
    body = b"\x80\x04}garbage"
    proj.put("one", body, "application/x-python-serialize", {"celery-state": "SUCCESS"})
    done = proj.run("show", "one")
    assert done.exit_code == 1
    assert re.search(r"^state +SUCCESS$", done.stdout, re.M)
    assert "Refusing to deserialize" in done.stderr
    assert "--raw and --output" in done.stderr
    done = proj.run("show", "one", "--json")
    assert done.exit_code == 1
    assert "Refusing to deserialize" in json.loads(done.stdout)["error"]
    assert proj.run("show", "one", "--raw").stdout_bytes == body
    target = proj.folder / "body"
    assert proj.run("show", "one", "--output", target).exit_code == 0
    assert target.read_bytes() == body


def test_show_compressed(proj):
    """A compressed result is shown like any other; --raw gives what is stored."""
    proj.backend._encoder._compression = "gzip"
    proj.store("x" * 5000, id="one")
    assert '"' + "x" * 5000 + '"' in proj.run("show", "one").stdout
    raw = proj.run("show", "one", "--raw").stdout_bytes
    assert json.loads(zlib.decompress(raw[raw.index(b"\x78\x9c") :]))["result"] == "x" * 5000


def test_large_results(proj, monkeypatch):
    """A large value is not printed for people; its bytes come in parts of one version, into a file that is complete."""
    monkeypatch.setattr("celery_s3.cli.body.PART_BYTES", 1024 * 1024)
    proj.store("x" * 3_000_000, id="one")
    done = proj.run("show", "one")
    assert done.requests == {"GET": 1, "LIST": 1}
    assert "--output FILE" in done.stdout
    assert len(done.stdout) < 2000
    assert len(proj.json("show", "one")["result"]) == 3_000_000
    target = proj.folder / "body"
    done = proj.run("show", "one", "--output", target)
    assert done.requests == {"GET": 4}
    assert json.loads(target.read_bytes())["result"] == "x" * 3_000_000
    assert target.stat().st_mode & 0o777 == 0o600
    assert json.loads(proj.run("show", "one", "--raw").stdout)["status"] == "SUCCESS"


def test_forgotten_while_it_is_read(proj, proxy):
    """A large result that goes while its parts are read is an error, not an empty result."""
    proj.store("x" * 500_000, id="one")
    proxy.fail("GET celery-task-meta", "no_such_key", after=1, times=-1)
    done = proj.run("show", "one")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "Error: one was forgotten while it was read.\n")


@pytest.mark.parametrize("fault", ["replaced", "failed"])
def test_nothing_half_done(proj, proxy, monkeypatch, fault):
    """A result that is replaced, or a read that fails, in the middle: the file is as before, with nothing beside it."""
    monkeypatch.setattr("celery_s3.cli.body.PART_BYTES", 1024 * 1024)
    proj.store("x" * 3_000_000, id="one")
    target = proj.folder / "body"
    target.write_text("before")
    files = set(proj.folder.iterdir())
    how = "precondition_failed" if fault == "replaced" else "access_denied"
    proxy.fail("GET celery-task-meta", how, after=2, times=-1)
    done = proj.run("show", "one", "--output", target)
    assert done.exit_code == 1
    assert ("replaced or forgotten" if fault == "replaced" else "access denied") in done.stderr
    assert target.read_text() == "before"
    assert set(proj.folder.iterdir()) == files


def test_output_into_nowhere(proj):
    """A folder that does not exist is told in a line."""
    proj.store(1, id="one")
    done = proj.run("show", "one", "--output", proj.folder / "no" / "file")
    assert done.exit_code == 1
    assert "No such file or directory" in done.stderr


def test_options_exclude_each_other(proj):
    """--raw with --json is a wrong use."""
    assert proj.run("show", "one", "--raw", "--json").exit_code == 2


def test_show_group(proj):
    """A saved group: its members and their states, each read with one request and without its value."""
    proj.store(1, id="one")
    proj.store(ValueError(), states.FAILURE, id="two")
    members = [proj.app.AsyncResult(id) for id in ("one", "two", "three")]
    members.append(proj.app.GroupResult("inner", [proj.app.AsyncResult("four")]))
    proj.app.GroupResult("crowd", members).save()
    done = proj.run("show", "crowd")
    assert done.requests == {"GET": 5, "LIST": 1}
    assert re.search(r"^members +4: 1 SUCCESS, 1 FAILURE, 1 PENDING$", done.stdout, re.M)
    record = proj.json("show", "crowd")
    assert record["members"] == [
        {"id": "one", "state": "SUCCESS"},
        {"id": "two", "state": "FAILURE"},
        {"id": "three", "state": "PENDING"},
        {"id": "inner", "state": None},
    ]
    assert len(proj.run("show", "crowd", "--raw").stdout) > 50


# -- forget


def test_forget_ids(proj):
    """Ids are looked at, then deleted in one request, a saved group among them; what is not there is forgotten too."""
    for id in ("one", "two", "three"):
        proj.store(1, id=id)
    proj.app.GroupResult("crowd", [proj.app.AsyncResult("three")]).save()
    done = proj.run("forget", "one", "two", "nope", "crowd", "one", "--yes")
    assert done.exit_code == 0
    assert re.fullmatch(r"Forgot 2 results and 1 saved group, \d+ B. 1 id had nothing.\n", done.stdout)
    assert done.requests == {"GET": 6, "DeleteObjects": 1}
    assert [proj.exists(id) for id in ("one", "two", "three")] == [False, False, True]
    assert proj.app.GroupResult.restore("crowd", proj.backend) is None


def test_forget_from_standard_input(proj):
    """- reads ids, one a line."""
    for id in ("one", "two", "three"):
        proj.store(1, id=id)
    done = proj.run("forget", "-", "--yes", "--json", input="one\r\n\ntwo")
    told = json.loads(done.stdout)
    assert 400 < told.pop("bytes") < 600
    assert told == {
        "results": 2,
        "groups": 0,
        "missing": [],
        "requests": {"GET": 2, "DELETE_OBJECTS": 1},
        "dry_run": False,
    }
    assert proj.exists("three")
    assert proj.run("forget", "-", "--yes", input="").requests == {}


def test_forget_from_a_file_of_windows(proj, proxy):
    """Lines may end with CR and LF: neither belongs to the id."""
    proj.store(1, id="one")
    process = subprocess.run(
        proj.command("forget", "-", "--yes"), cwd=proj.folder, env=proj.env, input=b"one\r\n", capture_output=True
    )
    assert process.returncode == 0
    assert process.stdout.startswith(b"Forgot 1 result, ")
    assert not proj.exists("one")


def test_forget_asks(proj):
    """Elsewhere than on a terminal nothing is deleted without --yes."""
    proj.store(1, id="one")
    for arguments in (["one"], ["--state", "SUCCESS"], ["--older-than", "0s"]):
        done = proj.run("forget", *arguments)
        assert done.exit_code == 1
        assert "say --yes" in done.stderr
    assert proj.exists("one")


def test_forget_fitting(proj):
    """By state and task: what fits goes, what does not stays; a listing to count, and one to delete."""
    proj.store(1, id="one")
    proj.store(ValueError(), states.FAILURE, id="two")
    proj.store(ValueError(), states.FAILURE, id="three", task="proj.mail.send")
    done = proj.run("forget", "--state", "FAILURE", "--task", "proj.tasks.*", "--yes")
    assert re.fullmatch(r"Forgot 1 result, \d+ B\.\n", done.stdout)
    assert done.requests == {"LIST": 3, "GET": 3, "DeleteObjects": 1}  # one to see whether there are files
    assert [proj.exists(id) for id in ("one", "two", "three")] == [True, False, True]
    assert proj.run("forget", "--older-than", "1h", "--yes").requests == {"LIST": 1}
    done = proj.run("forget", "--older-than", "2100-01-01", "--yes")
    assert done.requests == {"LIST": 3, "DeleteObjects": 1}  # one to see whether there are files
    assert not proj.exists("one")


def test_written_while_somebody_thinks(proj, monkeypatch):
    """What is written after it was counted stays, even if it fits: nobody has agreed to that."""
    proj.store(ValueError(), states.FAILURE, id="one")
    proj.store(ValueError(), states.FAILURE, id="two")

    def thinks(question):
        time.sleep(1.1)
        proj.store(ValueError("again"), states.FAILURE, id="two")
        proj.store(ValueError(), states.FAILURE, id="three")

    monkeypatch.setattr("celery_s3.cli.forget.confirm", thinks)
    assert proj.run("forget", "--state", "FAILURE").stdout.startswith("Forgot 1 result,")
    assert [proj.exists(id) for id in ("one", "two", "three")] == [False, True, True]


def test_forget_dry_run(proj):
    """--dry-run says how many would go, needs no --yes, and deletes nothing."""
    proj.store(1, id="one")
    proj.store(ValueError(), states.FAILURE, id="two")
    for arguments, count in (["one"], 1), (["--state", "FAILURE"], 1), (["--older-than", "2100-01-01"], 2):
        done = proj.run("forget", "--dry-run", *arguments)
        assert done.exit_code == 0
        assert done.stdout.startswith(f"Would forget {count} result")
        assert "DeleteObjects" not in done.requests
    assert proj.exists("one")
    assert proj.exists("two")


def test_forget_leaves_the_rest(proj):
    """Chords and saved groups are no results: no filter ever touches them."""
    proj.app.GroupResult("crowd", [proj.app.AsyncResult("one")]).save()
    chord_key = f"{proj.backend.chords.prefix}crowd/manifest"
    proj.backend.store.put(chord_key, b"{}")
    proj.store(1, id="one")
    assert "Forgot 1 result," in proj.run("forget", "--older-than", "2100-01-01", "--yes").stdout
    assert proj.app.GroupResult.restore("crowd", proj.backend) is not None
    assert proj.backend.store.get(chord_key).body == b"{}"


@pytest.mark.parametrize("arguments", [[], ["one", "--state", "FAILURE"]])
def test_forget_what(proj, arguments):
    """Neither ids nor a filter, or both: a wrong use, and no request."""
    done = proj.run("forget", *arguments)
    assert (done.exit_code, done.requests) == (2, {})


def test_forget_says_what_it_costs(proj, monkeypatch):
    """More than 1,000 requests to come (here: two) are told with the question."""
    monkeypatch.setattr("celery_s3.operate.budget.FREE", 2)
    monkeypatch.setattr("celery_s3.cli.query.FREE", 2)
    for number in range(3):
        proj.store(number)
    done = proj.run("forget", "--state", "SUCCESS")
    assert "Look at 3 results and forget those that fit? That takes 5 requests." in done.stderr
    assert done.requests == {"LIST": 2}  # and how many files there are
    done = proj.run("forget", "--state", "SUCCESS", "--dry-run")
    assert (done.exit_code, done.requests) == (1, {"LIST": 1})
    assert proj.run("forget", "--state", "SUCCESS", "--yes").stdout.startswith("Forgot 3 results")


def test_access_denied(proj, proxy):
    """Without s3:ListBucket or s3:DeleteObject: one line with the remedy, exit code 1."""
    proj.store(1, id="one")
    proxy.fail("LIST", "access_denied", times=-1)
    proxy.fail("DeleteObjects", "access_denied", times=-1)
    for arguments in (["ls"], ["forget", "--state", "FAILURE", "--yes"], ["forget", "one", "--yes"]):
        done = proj.run(*arguments)
        assert done.exit_code == 1
        assert "access denied" in done.stderr
        assert "access denied" in done.stderr.splitlines()[-1]
    done = proj.run("show", "one")
    assert done.exit_code == 0
    assert "storage class" not in done.stdout


# -- wait


def test_wait(proj):
    """A result that is there: one request, its value, exit code 0."""
    proj.store([1, 2], id="one")
    done = proj.run("wait", "one")
    assert (done.exit_code, json.loads(done.stdout), done.stderr, done.requests) == (0, [1, 2], "", {"GET": 1})


def test_wait_for_what_comes(proj):
    """It waits until the result comes."""
    timer = threading.Timer(0.3, lambda: proj.store("late", id="one"))
    timer.start()
    done = proj.run("wait", "one", "--timeout", "30s", "--json")
    timer.join()
    assert json.loads(done.stdout) == {"id": "one", "state": "SUCCESS", "result": "late", "traceback": None}


@pytest.mark.parametrize("state", [states.FAILURE, states.REVOKED])
def test_wait_for_a_failure(proj, state):
    """A task that failed or was revoked: its traceback or error, exit code 3."""
    traceback = TRACEBACK if state == states.FAILURE else None
    proj.backend.store_result("one", ValueError("no good"), state, traceback=traceback)
    done = proj.run("wait", "one")
    assert (done.exit_code, done.stderr) == (3, f"one ended with {state}.\n")
    assert done.stdout == f"{traceback or 'ValueError: no good'}\n"
    record = json.loads(proj.run("wait", "one", "--json").stdout)
    assert record["result"] == {"type": "ValueError", "message": "no good"}


def test_wait_in_vain(proj):
    """When the time is over: exit code 4; --timeout 0s is one look."""
    done = proj.run("wait", "nope", "--timeout", "0s")
    assert (done.exit_code, done.stdout, done.stderr) == (4, "", "nope has no result after 0 seconds.\n")
    assert done.requests == {"GET": 1}


@pytest.mark.parametrize("state", [states.PENDING, states.STARTED])
def test_wait_in_vain_json(proj, state):
    """With --json the state is told when the time is over, for one request more."""
    if state != states.PENDING:
        proj.store({"pid": 1}, state, id="one")
    done = proj.run("wait", "one", "--timeout", "0s", "--json")
    assert (done.exit_code, done.requests) == (4, {"GET": 2})
    record = json.loads(done.stdout)
    assert (record["id"], record["state"]) == ("one", state)


def strict(text):
    """What JSON holds; NaN and Infinity, which JSON does not have, are an error."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("command", ["show", "wait"])
def test_no_number_is_json_too(proj, command):
    """NaN and infinities, which JSON lacks, are told as texts; in the middle of a value as well."""
    proj.store({"loss": [math.nan, math.inf, -math.inf, 0.5]}, id="one")
    assert strict(proj.run(command, "one", "--json").stdout)["result"] == {
        "loss": ["NaN", "Infinity", "-Infinity", 0.5]
    }


def test_policy_json(proj):
    """--json is accepted as everywhere; it is JSON anyway."""
    assert strict(proj.run("policy", "--json").stdout) == strict(proj.run("policy").stdout)


def test_wait_for_what_cannot_be_decoded(proj):
    """A result that cannot be decoded is an error, exit code 1."""
    proj.put("one", b"{")
    done = proj.run("wait", "one")
    assert done.exit_code == 1
    assert "is not a result that this process can read" in done.stderr


def test_ctrl_c(proj, proxy):
    """Ctrl-C ends the waiting without a word."""
    process = subprocess.Popen(
        proj.command("wait", "nope"), cwd=proj.folder, env=proj.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not proxy.counts()["GET"] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


# -- stats


def test_stats(proj):
    """Kinds and ages are exact and cost a listing each; states and tasks are told of those that were looked at."""
    for number in range(5):
        proj.store("x" * 100, id=f"done-{number}")
    proj.store(ValueError("no"), states.FAILURE, id="failed")
    proj.app.GroupResult("crowd", [proj.app.AsyncResult("failed")]).save()
    proj.backend.store.put(f"{proj.backend.settings.base}somebody-elses", b"x")
    told = proj.json("stats")
    assert {kind: extent["count"] for kind, extent in told["kinds"].items()}.items() >= {
        "results": 6,
        "groups": 1,
    }.items()
    assert [(age["up_to"], age["count"]) for age in told["ages"]][::4] == [(3600, 6), (None, 0)]
    looked = told["looked_at"]
    assert {state: extent["count"] for state, extent in looked["states"].items()} == {"SUCCESS": 5, "FAILURE": 1}
    assert looked["tasks"]["proj.tasks.job"]["count"] == looked["results"] == 6
    assert told["requests"]["GET"] == 6
    done = proj.run("stats", "--look", "2")
    assert "A request for each 1,000 objects, and up to 2 requests for states." in done.stderr
    assert re.search(r"^results +6 +[\d.]+ K?B +█{24}$", done.stdout, re.M)
    assert re.search(r"^STATE +OF 2 ", done.stdout, re.M)
    assert done.requests["GET"] == 2
    assert "GET" not in proj.run("stats", "--look", "0").requests


# -- one grammar


def test_a_state_that_is_mistyped(proj):
    """A state that Celery does not know is told with the nearest one, and where was looked; one's own may be asked."""
    proj.store(1, id="one")
    proj.store({"done": 1}, "PROGRESS", id="two")
    for command in ("ls", "forget"):
        told = proj.run(command, "--state", "SUCESS", *(["--yes"] if command == "forget" else []))
        assert (
            f"in s3://{proj.backend.settings.bucket}/{proj.backend.settings.base}: SUCESS Did you mean SUCCESS?"
            in told.stderr
        )
    assert [one["id"] for one in proj.json("ls", "--state", "progress")] == ["two"]
    assert (
        f"1 shown of 2 results in s3://{proj.backend.settings.bucket}/{proj.backend.settings.base}, "
        in proj.run("ls", "--state", "SUCCESS").stderr
    )


def test_forget_tells_what_was_there(proj):
    """What stands under each id is shown before it goes, saved groups too; what had nothing is counted apart."""
    proj.store(1, id="one")
    proj.app.GroupResult("crowd", [proj.app.AsyncResult("one")]).save()
    told = proj.run("forget", "one", "crowd", "nope", "--dry-run")
    assert re.search(r"^one +SUCCESS +proj.tasks.job +\d+ B$", told.stderr, re.M)
    assert re.search(r"^crowd +saved group$", told.stderr, re.M)
    assert re.search(r"^nope +nothing$", told.stderr, re.M)
    assert re.fullmatch(r"Would forget 1 result and 1 saved group, \d+ B. 1 id had nothing.\n", told.stdout)
    record = proj.json("forget", "one", "crowd", "nope", "--yes")
    assert (record["results"], record["groups"], record["missing"]) == (1, 1, ["nope"])


# -- url


def test_url(proj, proxy):
    """Standard output has the URL alone: whoever has it reads the body, which the warning says."""
    proj.store("hush", id="one")
    done = proj.run("url", "one", "--expires", "10m")
    (url,) = done.stdout.splitlines()
    with urllib.request.urlopen(url) as answer:
        assert json.loads(answer.read())["result"] == "hush"
    assert "X-Amz-Expires=600&" in url
    assert re.search(r"Whoever has this URL can read the result \(\d+ B\) until .* UTC\.", done.stderr)
    assert proj.app.test_conf["s3_backend_settings"]["aws_secret_access_key"] not in done.output
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("X-Amz-Expires=600", "X-Amz-Expires=700"))


@pytest.mark.parametrize(
    ("stored", "answered"), [("application/json", "application/json"), ("text/html", "application/octet-stream")]
)
def test_url_of_a_page(proj, proxy, stored, answered):
    """A browser shows JSON, and runs nothing that somebody has put in a result's place."""
    proj.put("one", b"<script>", stored)
    with urllib.request.urlopen(proj.run("url", "one").stdout.strip()) as answer:
        assert answer.headers["Content-Type"] == answered


def test_url_json(proj, proxy):
    """The same for programs."""
    proj.store("hush", id="one")
    record = proj.json("url", "one")
    assert set(record) == {"id", "url", "expires", "size", "files"}
    assert "X-Amz-Expires=3600&" in record["url"]


@pytest.mark.parametrize("expires", ["8d", "0s", "soon"])
def test_url_expires(proj, expires):
    """S3 lets a URL live for 7 days."""
    assert proj.run("url", "one", "--expires", expires).exit_code == 2


def test_url_to_nothing(proj):
    """There is no URL to a result that is not there."""
    done = proj.run("url", "nope")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "There is no result of nope" in done.stderr


# -- on a terminal


def test_on_a_terminal(proj, proxy):
    """Tables fit, states and values are in colour, and no control character of a value or body gets through."""
    pytest.importorskip("rich")
    proj.backend.store_result("5b0ac9f6-0e0a-4a0e-9a35-0d4c6f2f9a11", ValueError("no"), "FAILURE", traceback=TRACEBACK)
    proj.store("beep\x07\x9b2J", id="one")
    proj.put("two", b"\x1b[2J")
    told, code = proj.terminal("ls")
    assert code == 0
    assert re.search(r"\x1b\[31mFAILURE", told)
    assert max(map(len, plain(told).splitlines())) <= 80
    told, code = proj.terminal("show", "one")
    assert '"beep\\u0007\\x9b2J"' in plain(told)
    assert not {"\x07", "\x9b"} & set(told)
    told, code = proj.terminal("show", "two", "--raw")
    assert code == 1
    assert "This is not plain text" in told
    assert "\x1b" not in told


def test_forget_on_a_terminal(proj, proxy):
    """It asks; only yes deletes."""
    proj.store(1, id="one")
    proj.store(1, id="two")
    told, code = proj.terminal("forget", "one", answer="n\n")
    assert code == 1
    assert "Forget 1 result? [y/N]" in plain(told)
    assert proj.exists("one")
    told, code = proj.terminal("forget", "--older-than", "2100-01-01", answer="y\n")
    assert code == 0
    assert re.search(r"Forget 2 results, \d+ B\? \[y/N\]", plain(told))
    assert "Forgot 2 results" in plain(told)
    assert not proj.exists("two")


def test_odd_ids(seaweed, make_app, stored):
    """Ids that need escapes in a URL are listed, linked to and forgotten as any other."""
    app = make_app(seaweed)
    obj = CLIContext(app=app, no_color=True, workdir=None)
    for id in ("a b/ü", "a\\b%2F", "c"):
        stored(app, id, id=id)

    def run(*arguments):
        done = CliRunner().invoke(s3, arguments, obj=obj)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert Counter(record["id"] for record in json.loads(run("ls", "--json"))) == Counter(["a b/ü", "a\\b%2F", "c"])
    for id in ("a b/ü", "a\\b%2F"):
        with urllib.request.urlopen(run("url", id).strip()) as answer:
            assert json.loads(answer.read())["result"] == id
    assert run("forget", "--task", "proj.tasks.*", "--yes").startswith("Forgot 3 results")
