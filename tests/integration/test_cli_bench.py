"""``celery s3 bench``: what it measures, what it costs, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.cli import s3
from celery_s3.keys import BENCH
from celery_s3.operate.bench import Bench, Plan


def left(backend):
    """The keys that stand under the scratch prefix."""
    return [entry.key for entry in backend.store.list(backend.layout.prefix(BENCH))]


def bench(app, *arguments):
    obj = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(s3, ["bench", *arguments], obj=obj)


def test_rows_and_cost(seaweed, make_app):
    """Each operation has its percentiles; what was made is what was announced, and nothing stays."""
    app = make_app(seaweed)
    done = bench(app, "--count", "10", "--concurrency", "4", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    rows = {row["operation"]: row for row in told["rows"]}
    assert list(rows) == ["put", "conditional put", "get", "get many", "list"]
    assert [row["samples"] for row in rows.values()] == [10, 10, 10, 5, 10]
    assert [row["requests"] for row in rows.values()] == [10, 10, 10, 50, 10]
    assert all(0 < row["p50"] <= row["p90"] <= row["p99"] for row in rows.values())
    assert "91 requests on celery-s3://results/" in done.stderr
    # the first PUT connects, and is paid as well
    assert told["dollars"] == pytest.approx((21 + 10) * 5e-6 + 60 * 4e-7)
    assert left(app.backend) == []


def test_table(seaweed, make_app):
    """The table is told in milliseconds, with the bill below."""
    done = bench(make_app(seaweed), "--count", "3")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["OPERATION", "SAMPLES", "MEDIAN", "P90", "P99", "REQUESTS/S"]
    assert lines[-1].startswith("1.0 KB each. It cost $0.000")


def test_dry_run(proxy, make_app):
    """--dry-run says what it would cost, with --json as JSON, and asks for nothing."""
    app = make_app(proxy)
    proxy.reset()
    done = bench(app, "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "811 requests" in done.stderr
    told = json.loads(bench(app, "--dry-run", "--json").stdout)
    assert told["plan"]["count"] == 100
    assert sum(told["requests"].values()) == 811
    assert told["dollars"] == pytest.approx(0.00130, abs=1e-5)
    assert not proxy.counts()


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_interrupt_leaves_nothing(seaweed, make_app, concurrency):
    """Whenever it is interrupted, what was written is removed, requests of other threads included."""
    backend = make_app(seaweed).backend
    moments = iter(range(60))

    class Interrupting:
        def put(self, key, body, **options):
            if next(moments, 0) == 25:
                raise KeyboardInterrupt
            return backend.store.put(key, body, **options)

        def __getattr__(self, name):
            return getattr(backend.store, name)

    bench = Bench(Interrupting(), backend.tally, backend.layout, Plan(20, 100, concurrency, 4))
    with pytest.raises(KeyboardInterrupt):
        list(bench.rows())
    assert left(backend) == []


def test_an_interrupt_keeps_what_is_measured(seaweed, make_app, monkeypatch):
    """Ctrl-C shows the rows that are complete by then, and ends it with 130."""
    app = make_app(seaweed)
    each = Bench._each

    def enough(self, operation, *more):
        if operation == "get":
            raise KeyboardInterrupt
        return each(self, operation, *more)

    monkeypatch.setattr(Bench, "_each", enough)
    done = bench(app, "--count", "2", "--json")
    assert done.exit_code == 130
    told = json.loads(done.stdout)
    assert ([row["operation"] for row in told["rows"]], told["complete"]) == (["put", "conditional put"], False)
    assert left(app.backend) == []


def test_signals_clean_up(seaweed, make_app, tmp_path):
    """SIGTERM ends the command, and nothing stays."""
    app = make_app(seaweed)
    (tmp_path / "slow.py").write_text(
        "import json, os\nfrom celery import Celery\napp = Celery('slow')\n"
        "app.conf.update(json.loads(os.environ['CELERY_S3_TEST_CONF']))\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "slow", "s3", "bench", "--count", "100000"]
    env = {**os.environ, "CELERY_S3_TEST_CONF": json.dumps(app.test_conf)}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert "requests on" in process.stderr.readline()
        while not left(app.backend):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert left(app.backend) == []


def test_listing_denied(proxy, make_app):
    """Where listing is denied the other rows are told all the same; what was denied is told, the exit code is 1."""
    app = make_app(proxy)
    proxy.fail("LIST", "access_denied", times=-1)
    done = bench(app, "--count", "2", "--json")
    assert done.exit_code == 1, done.output
    assert done.stderr.splitlines()[-1] == "list: denied: it needs s3:ListBucket."
    assert [row["denied"] for row in json.loads(done.stdout)["rows"]][-1] == "denied: it needs s3:ListBucket"


def test_the_first_error_is_told(proxy, make_app):
    """Where writing and deleting are denied, the error is that of writing; what stays is told beside it."""
    app = make_app(proxy)
    proxy.fail("PUT", "access_denied", times=-1)
    proxy.fail("DeleteObjects", "access_denied", times=-1)
    done = bench(app, "--count", "2")
    assert done.exit_code == 1
    note, error = [line for line in done.stderr.splitlines() if "denied (403" in line]
    assert note.startswith("What was written under ")
    assert error.startswith("Error: ")
    assert " put s3://" in error


def test_a_removal_denied(proxy, make_app):
    """Where only deleting is denied, that is the error."""
    app = make_app(proxy)
    proxy.fail("DeleteObjects", "access_denied", times=-1)
    done = bench(app, "--count", "2")
    assert done.exit_code == 1
    assert "s3:DeleteObject" in done.stderr


def test_no_bucket(seaweed, make_app):
    """A bucket that does not exist: one line, exit code 1."""
    done = bench(make_app(seaweed, s3_backend_settings={"bucket": "no-such-bucket"}), "--count", "2")
    assert done.exit_code == 1
    assert "the bucket does not exist" in done.output
    assert "Traceback" not in done.output
