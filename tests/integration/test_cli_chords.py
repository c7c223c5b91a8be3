"""``celery -A … s3 chords`` and ``s3 dev`` with SeaweedFS and a broker of files, in this process where that will do."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from celery import Celery, chain, chord, states
from celery.app.task import Context
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.chords import Ticket
from celery_s3.cli import s3
from celery_s3.cli.chords import _Found, _print
from celery_s3.dev.process import free_ports

LEASE = 0.2  # seconds; Last-Modified has whole ones
MODULE = f"""
import json, os
from celery import Celery
app = Celery("proj")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))
app.backend.chords.lease = {LEASE}
"""
CONF = {
    "broker_connection_timeout": 0.1,
    "task_publish_retry": False,
    "task_routes": {"proj.total": {"queue": "special"}},
}


class Proj:
    """An app, chords in every state, and the command."""

    def __init__(self, make_app, seaweed):
        self.make_app, self.server = make_app, seaweed
        self.app = self.another()
        self.backend = self.app.backend

        @self.app.task(name="proj.total")
        def total(numbers):
            return sum(numbers)

    def another(self, **conf):
        """An app that sees the same chords."""
        app = self.make_app(self.server, broker="filesystem", **CONF | conf)
        app.backend.chords.lease = LEASE
        return app

    def apply(self, size, delivered=0, body=None):
        """A chord of which so many members have written their part and died; its group id."""
        header = [self.app.signature("proj.member", ("a secret argument",)) for _ in range(size)]
        result = chord(header, body or self.app.signature("proj.total"), app=self.app).apply_async()
        ids = [member.id for member in result.parent.results]
        for index in range(delivered):
            self.deliver(result.parent.id, ids, index)
        return result.parent.id

    def deliver(self, group_id, ids, index):
        payload = self.backend.encode([ids[index], states.SUCCESS, index]).encode()
        return self.backend.chords.deliver(Ticket(group_id, len(ids), True), ids[index], index, payload)

    def failed(self):
        """A chord that has failed."""
        result = chord(
            [self.app.signature("proj.member")], self.app.signature("proj.total"), app=self.app
        ).apply_async()
        (member,) = result.parent.results
        request = Context({"id": member.id, "group": result.parent.id, "group_index": 0})
        request.chord = json.loads(self.backend.encode(self.messages()[-1].payload[2]["chord"]))
        self.backend.mark_as_failure(member.id, ValueError("no"), request=request)
        return result.parent.id

    def messages(self, queue=None):
        """What is on a queue of files, taken off."""
        with self.app.connection_for_read() as connection:
            found = self.app.amqp.queues[queue or self.app.conf.task_default_queue](connection.default_channel)
            found.declare()
            return list(iter(lambda: found.get(no_ack=True), None))

    def celery(self, *arguments, app=None):
        """The command in this process."""
        obj = CLIContext(app=app or self.app, no_color=True, workdir=None)
        done = CliRunner(env={"COLUMNS": "80"}).invoke(s3, arguments, obj=obj)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def json(self, *arguments):
        done = self.celery("chords", "--json", *arguments)
        assert not done.stderr or done.exit_code, done.stderr
        assert done.stdout, done.stderr
        return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def proj(seaweed, make_app):
    return Proj(make_app, seaweed)


def wait_for_the_lease():
    # Last-Modified names the second in which an object was written, not when in it
    time.sleep(1.05 + LEASE)


def test_nothing_in_flight(proj):
    """Without chords the command says so, and all is well."""
    done = proj.celery("chords")
    assert (done.exit_code, done.stdout) == (0, "0 in flight, 0 stuck.\n"), done.stderr
    assert proj.json() == (0, [])


def test_the_list(proj):
    """Each chord in flight is a line: group id, age, members done and expected, state, body; the exit code tells."""
    running, complete = proj.apply(3, 1), proj.apply(2, 2, chain(proj.app.signature("a"), proj.app.signature("b")))
    wait_for_the_lease()
    done = proj.celery("chords")
    lines = done.stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["GROUP", "AGE", "DONE", "STATE", "BODY"]
    rows = {cells[0]: cells[2:] for cells in (re.split(r"\s{2,}", line) for line in lines[1:3])}
    assert rows == {running: ["1/3", "running", "proj.total"], complete: ["2/2", "stuck", "chain(a, b)"]}
    assert f"{complete} is stuck: all parts are there, and nobody went on." in lines
    assert "2 in flight, 1 stuck." in lines
    assert (done.exit_code, done.stderr) == (1, "")
    assert "secret" not in done.stdout


def test_json(proj):
    """The records have these names and types, whatever the state; ages are seconds."""
    group_id = proj.apply(3, 3)
    wait_for_the_lease()
    code, (record,) = proj.json()
    age, started = record.pop("age"), record.pop("started")
    assert code == 1
    assert 1 <= age < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", started)
    assert record == {
        "group": group_id,
        "state": "stuck",
        "was": None,
        "reason": "all parts are there, and nobody went on",
        "done": 3,
        "size": 3,
        "body": "proj.total",
        "missing": None,
    }


def test_by_any_id(proj):
    """A chord is found by the id that one holds: the body's, a member's or the group's; what it waits for is listed."""
    members = [proj.app.signature("proj.member") for _ in range(3)]
    body = chord(members, proj.app.signature("proj.total"), app=proj.app).apply_async()
    group, ids = body.parent, [member.id for member in body.parent.results]
    proj.deliver(group.id, ids, 0)
    proj.backend.store_result(ids[1], None, states.STARTED, request=Context({"id": ids[1], "task": "proj.member"}))
    other = proj.apply(2)
    missing = [{"id": ids[1], "state": "STARTED", "task": "proj.member"}]
    missing.append({"id": ids[2], "state": "PENDING", "task": None})
    for id in (body.id, ids[2], group.id):
        _, (record,) = proj.json(id)
        assert (record["group"], record["missing"]) == (group.id, missing)
    told = proj.celery("chords", ids[0], "never-was")
    assert told.exit_code == 1
    assert f"{group.id} waits for 2 members:" in told.stdout
    assert re.search(rf"^{ids[1]}  STARTED  proj.member$", told.stdout, re.M)
    assert other not in told.stdout
    assert "There is no chord of never-was" in told.stderr


def test_repair(proj):
    """--dry-run does nothing, --repair sends what is complete, once, to its task's queue; then all is well."""
    stuck, running = proj.apply(2, 2), proj.apply(2, 1)
    wait_for_the_lease()
    done = proj.celery("chords", "--repair", "--dry-run")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "--repair would mend 1.")
    assert proj.messages("special") == []

    code, records = proj.json("--repair", "--yes")
    assert code == 0
    assert {one["group"]: (one["state"], one["was"]) for one in records} == {
        stuck: ("sent", "stuck"),
        running: ("running", None),
    }
    (message,) = proj.messages("special")
    assert (message.headers["task"], message.payload[0]) == ("proj.total", [[0, 1]])
    done = proj.celery("chords", "--repair", "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "1 in flight, 0 stuck.")
    assert proj.messages("special") == []


def test_repair_asks(proj):
    """It shows which task with which arguments it would send, and sends nothing where nobody says yes."""
    proj.apply(1, 1, proj.app.signature("proj.total", kwargs={"to": "everybody"}))
    proj.messages()
    wait_for_the_lease()
    done = proj.celery("chords", "--repair")
    assert done.exit_code == 1
    assert "proj.total(to='everybody')" in done.stderr
    assert "say --yes" in done.stderr
    assert proj.messages("special") == []


@pytest.mark.parametrize("where", ["link", "link_error"])
def test_repair_shows_what_hangs_on_a_body(proj, where):
    """What is sent with a body, or in its place where it fails, is shown with its arguments as well."""
    other = proj.app.signature("proj.erase", ("everything",))
    proj.apply(1, 1, proj.app.signature("proj.total", options={where: [other]}))
    wait_for_the_lease()
    done = proj.celery("chords", "--repair")
    assert "proj.erase" in done.stderr
    assert "everything" in done.stderr


def test_chosen_chords(proj):
    """Only the chords named are listed and mended, tombstones among them; an unknown one is an error."""
    first, second = proj.apply(1, 1), proj.apply(1, 1)
    wait_for_the_lease()
    code, (record,) = proj.json("--repair", "--yes", first)
    assert (code, record["group"], record["state"]) == (0, first, "sent")
    code, (record,) = proj.json(first)
    assert (code, record["state"]) == (0, "sent")
    code, (record,) = proj.json(second)
    assert (code, record["state"]) == (1, "stuck")
    done = proj.celery("chords", "nobody")
    assert (done.exit_code, done.stderr) == (1, "There is no chord of nobody: no group, body or member has that id.\n")


def test_all(proj):
    """--all tells tombstones too; they are no trouble."""
    failed, stuck = proj.failed(), proj.apply(1, 1)
    wait_for_the_lease()
    assert proj.json("--repair", "--yes")[0] == 0
    assert proj.json() == (0, [])
    code, records = proj.json("--all")
    assert (code, {one["group"]: one["state"] for one in records}) == (0, {failed: "failed", stuck: "sent"})
    done = proj.celery("chords", "--all")
    assert done.stdout.splitlines()[-1] == "0 in flight, 0 stuck."


def test_without_a_broker(proj):
    """Where the broker does not answer, the chord stays as it is, the reason is told, and the exit code is 1."""
    group_id = proj.apply(1, 1)
    wait_for_the_lease()
    away = proj.another(broker_url="redis://:hush@127.0.0.1:1/0", broker_transport_options={})
    done = proj.celery("chords", "--repair", "--yes", app=away)
    assert done.exit_code == 1
    assert f"Chord {group_id} could not be mended" in done.stderr
    assert "hush" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert proj.json("--repair", "--yes")[0] == 0


def test_errors_are_one_line(proj, seaweed):
    """A bucket that does not exist, wrong keys: one line with the remedy, no secret, exit code 1."""
    for change in ({"bucket": "no-such-bucket"}, {"aws_secret_access_key": "hush-hush"}):
        done = proj.celery("chords", app=proj.another(s3_backend_settings=change))
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: list s3://")
        assert len(done.stderr.splitlines()) == 1
        assert "hush" not in done.stderr + done.stdout
        assert seaweed.secret_key not in done.stderr + done.stdout


def test_no_module():
    """Without an app the command says which app it means, and what to do."""
    done = subprocess.run([sys.executable, "-m", "celery", "s3", "chords"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not celery-s3's" in done.stderr


def on_a_terminal(proj, folder, *arguments, columns):
    """What the command prints on a terminal of so many columns, in a process of its own."""
    (folder / "proj.py").write_text(MODULE)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "celery", "-A", "proj", "s3", *arguments]
    env = os.environ | {
        "CELERY_S3_TEST_CONF": json.dumps(proj.app.test_conf),
        "COLUMNS": str(columns),
        "TERM": "xterm",
    }
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env)
    os.close(theirs)
    told = b""
    try:
        while chunk := os.read(ours, 4096):
            told += chunk
    except OSError:
        pass
    process.wait()
    os.close(ours)
    return told.decode()


def test_on_a_terminal(proj, tmp_path):
    """On a terminal the table fits, ids stay whole, trouble is red, and a wide one has room for a bar."""
    pytest.importorskip("rich")
    group_id = proj.apply(4, 4)
    wait_for_the_lease()
    narrow = on_a_terminal(proj, tmp_path, "chords", columns=80)
    assert re.search(r"\x1b\[31mstuck", narrow)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", narrow)
    assert group_id in plain
    assert max(map(len, plain.split("\r\n")[:2])) <= 80
    assert "4/4 ██████████" in re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(proj, tmp_path, "chords", columns=140))


def test_ids_cannot_play_with_the_terminal(proj, capsys):
    """Control characters of a group id are shown, not sent, in every line."""
    group_id = proj.apply(2, 2)
    (found,) = proj.backend.repairs.survey.chords([group_id], settled=True)
    _print(proj.backend, [_Found(replace(found, group="g\x1b[2J", state="stuck"))], False)
    told = capsys.readouterr().out
    assert "g\\x1b[2J is stuck" in told
    assert "\x1b" not in told
    assert "There is no chord of no\\x1bsuch: " in proj.celery("chords", "no\x1bsuch").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--port", "99999"], 2, "--port"),
        (["--bucket", "Bad Bucket!"], 2, "'Bad Bucket!' is not a bucket name"),
        (["--bucket", "Old_Bucket"], 2, "'Old_Bucket' is not a bucket name"),
        (["--port", "0", "--dir", "a-file/data"], 1, "cannot be used: Not a directory."),
    ],
)
def test_dev_refuses(tmp_path, monkeypatch, arguments, code, told):
    """What cannot work is told at once, in a line, without a traceback."""
    (tmp_path / "a-file").touch()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(s3, ["dev", *arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_dev_on_a_taken_port(seaweed):
    """A port that another server has is refused: its answers are not taken for those of our own."""
    port = seaweed.endpoint_url.rpartition(":")[2]
    done = CliRunner().invoke(s3, ["dev", "--port", port, "--secret", seaweed.secret_key])
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"Error: The port {port} of 127.0.0.1 cannot be used: " in done.stderr


def test_dev(tmp_path):
    """The server comes up on the port, prints settings that work, and ends with Ctrl-C; the data stays."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "celery", "s3", "dev", "--port", str(port), "--dir", str(tmp_path / "data")]
    for expected in (None, 7):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            told = ""
            while "secret_access_key" not in told:
                line = process.stdout.readline()
                if not line:
                    pytest.skip(process.stderr.read())
                told += line
            assert f"http://127.0.0.1:{port}" in told
            app = Celery("dev", set_as_current=False)
            exec(told.partition("Settings:")[2], {"app": app})
            stored = app.AsyncResult("kept").result
            assert stored == expected
            app.backend.store_result("kept", 7, states.SUCCESS)
            app.close()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            process.stdout.close()
            process.stderr.close()
