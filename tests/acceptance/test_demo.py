"""``make demo``: the first screen shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from celery_s3.dev.process import ServerNotStarted
from celery_s3.dev.seaweed import find_weed
from devtools import ROOT

pytestmark = pytest.mark.timeout(150)

TITLES = ["succeeds", "fails", "retries", "no result", "large result", "group of 200", "chord of 50"]


@dataclass
class Demo:
    """A run of the demo under way; ``temp`` is where its temporary files go."""

    process: subprocess.Popen[str]
    temp: Path

    def read_until(self, text: str) -> str:
        """What it prints up to the line that holds ``text``."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        return pytest.fail(f"the demo did not print {text!r}:\n{''.join(lines)}")

    def finish(self) -> tuple[int, str]:
        """Its exit code, and the rest of what it prints."""
        output = self.process.communicate(timeout=120)[0]
        return self.process.returncode, output

    def left(self) -> list[str]:
        """Processes whose temporary directory is this run's or below it, and files in it."""
        return _processes_in(self.temp) + [str(file) for file in self.temp.iterdir()]


def _needs_seaweedfs() -> None:
    try:
        find_weed()
    except ServerNotStarted as exc:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(exc))


def _processes_in(folder: Path) -> list[str]:
    if not Path("/proc/self/environ").exists():
        return []
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
        except OSError:  # of another user, or gone
            continue
    return found


def _start(temp: Path, python: Path | str = sys.executable, **variables: str) -> Demo:
    env = {**os.environ, "TMPDIR": str(temp), "AWS_PROFILE": "there-is-none", **variables}
    command = [str(python), "-m", "devtools.demo"]
    process = subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Demo(process, temp)


@pytest.fixture
def temp() -> Iterator[Path]:
    # pytest's own directories are too long for the server's sockets
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        yield Path(folder)


@pytest.fixture
def demo(temp: Path) -> Iterator[Demo]:
    _needs_seaweedfs()
    running = _start(temp)
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.process.communicate(timeout=30)


def _figures(output: str, title: str) -> list[float]:
    """The numbers of a row of the table: PUT, GET, HEAD and dollars of ours, then of Celery's own."""
    rows = [line for line in output.splitlines() if line.startswith(f"  {title} ")]
    assert len(rows) == 1, f"one row for {title!r} in:\n{output}"
    figures = [float(figure) for figure in rows[0].split()[-10:]]
    return figures[1:5] + figures[6:]  # without the seconds


def test_the_whole_screen(demo: Demo) -> None:
    """Every row is there with what it cost, a result takes one PUT, nothing runs afterwards, no control characters."""
    code, output = demo.finish()
    assert code == 0, output
    rows = {title: _figures(output, title) for title in TITLES}
    put, get, head, dollars, *_ = rows["succeeds"]
    assert (put, head) == (1, 0)
    assert get >= 1
    assert dollars == pytest.approx(5 + 0.4 * get, abs=0.01)
    assert rows["no result"] == [0] * 8
    assert rows["group of 200"][0] == rows["group of 200"][4] == 200
    # a part and a result for each, two summaries, the body's result, two versions of the claim, two of the manifest
    # (a generator makes the header), and what two processes write at the same moment: both summaries, the claim
    assert 107 <= rows["chord of 50"][0] <= 110
    assert all(row[2] == 0 for row in rows.values())
    assert "NotFound(7)" in output
    for told in ("→ still 5", "→ orders.csv", "→ sum 45, once", "state          SUCCESS"):
        assert told in output
    assert "\x1b" not in output
    assert "\r" not in output
    assert "Traceback" not in output
    assert demo.left() == []
    ports = re.findall(r"http://127\.0\.0\.1:(\d+)", output)
    assert len(ports) == 3
    assert not [port for port in ports if _listens(int(port))]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_interrupted(demo: Demo, number: int, code: int, says: str) -> None:
    """Ctrl-C and SIGTERM in the middle of it end everything, say so, and fail."""
    demo.read_until("✓ large result")
    demo.process.send_signal(number)
    found = demo.finish()
    assert found[0] == code, found[1]
    assert says in found[1]
    assert "Traceback" not in found[1]
    assert demo.left() == []


def test_the_worker_dies(demo: Demo) -> None:
    """A worker that is gone fails the demo soon, with the end of the worker's log."""
    said = demo.read_until("✓ Worker")
    os.kill(int(re.findall(r"pid (\d+)", said)[-1]), signal.SIGKILL)
    code, output = demo.finish()
    assert code == 1
    assert "the worker ended by itself" in output
    assert "The end of the worker's log" in output
    assert "ready." in output
    assert demo.left() == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux: elsewhere nothing can see to it")
def test_killed(demo: Demo) -> None:
    """Even after SIGKILL nothing runs on."""
    demo.read_until("✓ succeeds")
    demo.process.kill()
    demo.process.communicate()
    deadline = time.monotonic() + 30
    while _processes_in(demo.temp) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _processes_in(demo.temp) == []


def test_no_server_for_this_platform(temp: Path, tmp_path: Path) -> None:
    """Without SeaweedFS the demo tells how to get it, and how to go on with a bucket of one's own."""
    if shutil.which("weed", path="/usr/bin:/bin"):
        pytest.skip("SeaweedFS is installed in the system")
    python = tmp_path / "python"
    python.symlink_to(sys.executable)  # nothing is beside this one
    demo = _start(temp, python, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), PATH="/usr/bin:/bin")
    code, output = demo.finish()
    assert code == 1
    assert "macOS on Intel" in output
    assert 'result_backend = "celery-s3://my-bucket/results?region=eu-central-1"' in output
    assert "Traceback" not in output
    assert demo.left() == []
