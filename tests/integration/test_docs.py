"""What README and docs print can be pasted: each snippet runs, and each line of a shell is one that its program takes.

Snippets that need a worker, a server or a library run in tests of their own, which :data:`ELSEWHERE` names.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import click
import pytest
from celery import Celery, chain

import celery_s3.typed
from celery_s3.cli import s3
from celery_s3.dev.memory import MemoryBucket
from devtools import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages whose Python runs elsewhere, and where.
ELSEWHERE = {
    "asyncio.md": "tests/integration/test_docs_asyncio.py",
    "django.md": "tests/integration/test_docs.py",
    "network.md": "tests/contract/test_network.py",
    "quickstart.md": "tests/acceptance/test_quickstart.py",
    "testing.md": "tests/integration/test_dev_servers.py",
}
#: Commands that need no app.
WITHOUT_APP = {"cost", "dev"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def with_python() -> list[Path]:
    return [page for page in PAGES if blocks(page, "python") and page.name not in ELSEWHERE]


@pytest.fixture
def app():
    """An app over a bucket in memory, whatever the snippets make of its settings."""
    with MemoryBucket() as bucket:
        app = Celery("proj", broker="memory://", backend="celery-s3://")
        app.conf.update(s3_backend_settings=bucket.settings(), task_always_eager=True, task_store_eager_result=True)
        app.task = partial(app.task, shared=False)  # else every app of this process has these tasks from now on
        yield app
        app.close()


def names(app, tmp_path, monkeypatch):
    """What the pages take for granted: an app, its tasks, and an application around them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.pdf").write_bytes(b"%PDF")
    (tmp_path / "photo.jpg").write_bytes(b"jpeg")

    def task(name):
        @app.task(name=name)
        def any_task(*args, **kwargs):
            return None

        return any_task

    tasks = {name: task(name) for name in ("fetch", "store", "audit", "mail", "add", "thumbnail")}

    @app.task(name="a report")
    def report(*args):
        return celery_s3.S3File(tmp_path / "report.pdf")

    money = make_dataclass("Money", ["amount", "unit"], frozen=True)
    return {
        **tasks,
        "app": app,
        "report": report,
        "chain": chain,
        "url": "https://example.com",
        "make_png": lambda id: b"\x89PNG",
        "render": lambda year: tmp_path / "report.pdf",
        "S3File": celery_s3.S3File,
        "typed": celery_s3.typed,
        "Money": money,
        "PurePosixPath": PurePosixPath,
        "__name__": __name__,
    }


@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.name)
def test_python(page, app, tmp_path, monkeypatch):
    """A page's Python runs from its first snippet to the last, and the settings that it names are accepted."""
    known = names(app, tmp_path, monkeypatch)
    keys = tmp_path / "results.key"
    keys.write_text("A" * 43 + "=")
    keys.chmod(0o600)
    kept = dict(app.conf.s3_backend_settings)
    if page.name == "operations.md":
        pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    if page.name == "files.md":
        known["report"] = SimpleNamespace(
            delay=lambda *args: SimpleNamespace(get=lambda: celery_s3.S3File(tmp_path / "report.pdf")),
            s=known["report"].s,
        )
    for number, block in enumerate(blocks(page, "python")):
        code = block.replace("/etc/proj/results.key", str(keys))
        if "file.url(" in code:  # a link needs a server, and a file that was stored
            code = code.replace("file.url(expires=3600)", "file.url")
        exec(compile(code, f"{page.name}[{number}]", "exec", dont_inherit=True), known)
        said = known["app"].conf.get("s3_backend_settings") or {}
        check = Celery("check", set_as_current=False, broker="memory://")
        check.conf.update(result_backend=_backend(known, block), s3_backend_settings={**_without_server(kept), **said})
        assert check.backend
        check.close()


def test_django(tmp_path):
    """The files of docs/django.md are a project whose results are where its settings say."""
    pytest.importorskip("django")
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "django.md").read_text(), re.DOTALL):
        file = tmp_path / "proj" / Path(name).name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    look = "from proj import celery_app as app; print(app.backend.as_uri(), app.backend.settings.max_retries)"
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["celery-s3://my-bucket/results/?region=eu-central-1", "8"], done.stderr


def _without_server(settings):
    return {name: value for name, value in settings.items() if name == "bucket"}


def _backend(known, block):
    """What the snippet makes the result backend, in whatever way it says so."""
    given = known["app"].conf.result_backend
    return known["result_backend"] if re.search("^result_backend =", block, re.MULTILINE) else given


def shell_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line[2:]) for line in joined.splitlines() if line.startswith("$ ")]
    return found


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_shell(page, line):
    """A command of ours has an app where it needs one and takes these options; an extra and a make target exist."""
    words = shlex.split(line, comments=True)
    if words[0] == "celery" and "s3" in words:
        place = words.index("s3")
        name, *arguments = words[place + 1 :]
        assert name in WITHOUT_APP or words[1] == "-A", "it needs an app"
        if ">" in arguments:
            arguments = arguments[: arguments.index(">")]
        command = s3.get_command(click.Context(s3), name)
        command.make_context(name, arguments, parent=click.Context(s3, obj=SimpleNamespace(app=None)))
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"(?:celery-s3|checkout|\.)\[([\w,]+)\]", line)
        assert set(",".join(extras).split(",")) - {""} <= set(PYPROJECT["project"]["optional-dependencies"])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_elsewhere(test):
    """The tests that run the other pages are there."""
    assert "docs" in (ROOT / test).read_text()


def test_links():
    """Each link within the repository leads to a page, and to a heading that it has."""
    broken = []
    for page in [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md")), ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            if (found.suffix != ".jsonl" and not found.exists()) or (
                anchor and found.suffix == ".md" and anchor not in _anchors(found)
            ):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}
