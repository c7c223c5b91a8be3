"""`celery s3 browse`: who may look, what is shown, what it costs, and that nothing of a value is more than text."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from celery import chord, states
from celery.app.task import Context

from celery_s3 import S3File

pytest.importorskip("starlette")
testclient = pytest.importorskip("starlette.testclient")

TOKEN = "the-token"
EVIL = "<script>alert(1)</script>"


class Browser:
    """A client of the pages, and the app whose results they show."""

    def __init__(self, app, **options):
        from celery_s3.cli.browse.app import make_app

        self.app = app
        self.pages = make_app(app.backend, TOKEN, hosts={"127.0.0.1"}, **options)
        self.client = self.stranger()
        assert self.client.get(f"/?token={TOKEN}").status_code == 200

    def stranger(self):
        return testclient.TestClient(self.pages, base_url="http://127.0.0.1:80")

    def get(self, path, status=200, **query):
        answer = self.client.get(path, params=query or None)
        assert answer.status_code == status, answer.text
        return answer.text

    def ids(self, **query):
        return re.findall(r"/result\?id=([^\"&]+)\">", self.get("/", **query))


@pytest.fixture
def browser(counted):
    return Browser(counted())


def test_who_may_look(browser):
    """Without the token nobody sees anything; it goes into a cookie at once, that no script and no other site gets."""
    stranger = browser.stranger()
    for path in ("/", "/result?id=x", "/file?id=x", "/chords", "/?token=wrong"):
        assert stranger.get(path).status_code == 403
    answer = stranger.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    deep = stranger.get(f"/result?token={TOKEN}&id=one", follow_redirects=False)
    assert deep.headers["location"] == "/result?id=one"
    stranger = browser.stranger()
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    elsewhere = {"host": "rebound.example:80"}
    assert browser.client.get("/", headers=elsewhere).status_code == 421
    answer = browser.client.get("/")
    assert TOKEN not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_results(browser, stored):
    """Newest first, by filters of state, task, time and id; each page tells its requests: a LIST, a GET for each."""
    app = browser.app
    stored(app, 1, id="one")
    stored(app, ValueError("no"), states.FAILURE, id="two", task="proj.other")
    page = browser.get("/")
    assert set(browser.ids()) == {"one", "two"}
    assert "This page took 3 requests" in page
    assert browser.ids(state="FAILURE") == ["two"]
    assert browser.ids(task="proj.o*") == ["two"]
    assert browser.ids(older="1h") == []
    assert "is no time" in browser.get("/", 400, since="soon")
    assert "<dd>proj.other</dd>" in browser.get("/", id="two")


def test_pages_of_many(browser, stored, monkeypatch):
    """No page lists more than its keys, nor looks at more than its limit; links lead through all of them once."""
    from celery_s3.cli.browse import app as pages

    for number in range(10):
        stored(browser.app, number, id=f"r{number}")
    for name, limit in (("PAGE", 6), ("ROWS", 2), ("LOOKS", 4)):
        monkeypatch.setattr(pages, name, limit)
    seen, links = [], ["/"]
    while links:
        assert len(seen) <= 10
        page = browser.get(links.pop().replace("&amp;", "&"))
        assert page.count("/result?id=") <= 2
        seen += re.findall(r"id=(r\d)\"", page)
        if more := re.search(r'href="([^"]+)">Older', page):
            links.append(more[1])
        elif other := re.search(r'href="([^"]+)">The next', page):
            links.append(other[1])
    assert sorted(seen) == [f"r{number}" for number in range(10)]


def test_nothing_is_more_than_text(browser, stored):
    """Ids, values, tracebacks, tasks and names of files are shown as text, whatever is in them."""
    app = browser.app
    app.backend.store_result(EVIL, EVIL, states.SUCCESS, request=Context({"id": EVIL, "task": EVIL}))
    app.backend.store_result("failed", ValueError(EVIL), states.FAILURE, traceback=EVIL)
    for page in (browser.get("/"), browser.get("/result", id=EVIL), browser.get("/result", id="failed")):
        assert "<script" not in page
        assert "&lt;script&gt;" in page
    assert "<script" not in browser.get("/result", 404, id=f"{EVIL}-not-there")


def test_one_result(browser, stored, tmp_path):
    """Value, children and files: a file is always saved, never shown by the browser."""
    (tmp_path / "page.html").write_text(EVIL)
    stored(
        browser.app, {"file": S3File(tmp_path / "page.html")}, id="one", _children=[browser.app.AsyncResult("child")]
    )
    page = browser.get("/result", id="one")
    assert 'href="/result?id=child"' in page
    assert "page.html" in page
    answer = browser.client.get("/file", params={"id": "one", "n": "0"})
    assert answer.text == EVIL
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''page.html"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert browser.client.get("/file", params={"id": "one", "n": "7"}).status_code == 404


def test_chords(browser):
    """A chord in flight with the members that are missing."""
    app = browser.app
    result = chord([app.signature("proj.member")] * 2, app.signature("proj.total"), app=app).apply_async()
    page = browser.get("/chords")
    assert result.parent.id in page
    assert "0 of 2 members" in page
    assert all(member.id in page for member in result.parent.results)
    assert "proj.total" in page


def test_forget(browser, counted, stored):
    """Read-only, unless it is allowed to forget; then by a form of its own page alone."""
    stored(browser.app, 1, id="one")
    assert browser.client.post("/forget", data={"id": "one"}).status_code == 404
    assert '<form method="post"' not in browser.get("/result", id="one")
    allowed = Browser(browser.app, allow_forget=True)
    assert allowed.client.post("/forget", data={"id": "one"}).status_code == 403
    assert browser.app.backend.task_result_exists("one")
    token = re.search(r'name="form_token" value="(\w+)"', allowed.get("/result", id="one"))[1]
    assert allowed.client.post("/forget", data={"id": "one", "form_token": token}).status_code == 200
    assert not browser.app.backend.task_result_exists("one")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_a_browser(seaweed, make_app, stored, tmp_path):
    """The command itself, in a real browser: it prints its address, serves its pages, and ends by Ctrl-C."""
    pytest.importorskip("uvicorn")
    app = make_app(seaweed)
    stored(app, EVIL, id="one")
    (tmp_path / "proj.py").write_text(
        "import json, os\nfrom celery import Celery\napp = Celery('proj')\n"
        "app.conf.update(json.loads(os.environ['CELERY_S3_TEST_CONF']))\n"
    )
    env = {**os.environ, "CELERY_S3_TEST_CONF": json.dumps(app.test_conf), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "celery", "-A", "proj", "s3", "browse"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address), process.stderr.read()
        for path, text in (("/", ">one</a>"), ("/result?id=one&", "&lt;script&gt;alert(1)&lt;/script&gt;")):
            url = address.replace("/?", path if path.endswith("&") else f"{path}?")
            chromium = [
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path}/profile",
            ]
            shown = subprocess.run(
                [*chromium, "--dump-dom", url], capture_output=True, text=True, timeout=60, check=True
            )
            assert text in shown.stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
    finally:
        process.kill()
        process.communicate()
