"""Each odd answer that servers are known for, in front of a server without it: what is worked around, what is told.

See :mod:`devtools.proxy.quirks` for the answers and the servers that give them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.bucket import Opened, open_store
from celery_s3.cli import s3
from celery_s3.errors import BadRequest, PreconditionFailed
from celery_s3.operate.capabilities import CAPABILITIES
from celery_s3.results.write_once import HEAD_BYTES
from celery_s3.store.api import CREATE, Match
from celery_s3.store.probe import Verdict
from devtools.proxy import Proxy
from devtools.proxy.quirks import QUIRKS

_MIB = 1024 * 1024


@pytest.fixture(scope="module")
def _proxy(moto_s3: Any) -> Iterator[Proxy]:
    with Proxy(moto_s3) as proxy:
        yield proxy


@pytest.fixture
def quirky(_proxy: Proxy, moto_s3: Any, fresh_bucket: Callable[..., str]) -> Iterator[Callable[..., Proxy]]:
    """``quirky("empty_message")``: a server with these quirks and a bucket of its own, which nobody has asked."""

    def make(*names: str) -> Proxy:
        _proxy.restore()
        _proxy.bucket = fresh_bucket(moto_s3)
        _proxy.configure(quirks=names)
        return _proxy

    yield make
    _proxy.restore()


@pytest.fixture(params=["auto", "boto3"])
def opened(
    request: pytest.FixtureRequest, quirky: Callable[..., Proxy], settings_for: Callable[..., Any]
) -> Iterator[Callable[..., Opened]]:
    """``opened("empty_message")``: that server's bucket, by each client."""
    stack: list[Opened] = []

    def make(*names: str, **overrides: Any) -> Opened:
        stack.append(open_store(settings_for(quirky(*names), client=request.param, max_retries=1, **overrides)))
        return stack[-1]

    yield make
    for one in stack:
        one.close()


@pytest.mark.parametrize(
    ("quirk", "verdict"),
    [
        ("other_namespace", Verdict.KEPT),
        ("weak_etags", Verdict.KEPT),
        ("empty_message", Verdict.KEPT),
        ("bare_if_match", Verdict.KEPT_BARE),
        ("refused_if_match", Verdict.REFUSED),
    ],
)
def test_conditional_writes(opened, quirk, verdict):
    """The probe finds out what a server makes of conditions; where they are kept, a version can be replaced once."""
    one = opened(quirk)
    assert one.conditional.verdict() is verdict
    if verdict.supported:
        etag = one.store.put("k", b"1", precondition=CREATE)
        one.store.put("k", b"2", precondition=Match(etag))
        with pytest.raises(PreconditionFailed):
            one.store.put("k", b"3", precondition=Match(etag))
        assert one.store.get("k", if_match=one.store.get("k").etag).body == b"2"


@pytest.mark.parametrize("quirk", ["bare_if_match", "weak_etags", "refused_if_match", "empty_message"])
def test_a_tracked_task(quirky, make_app, quirk):
    """STARTED, progress, SUCCESS; a late FAILURE changes nothing."""
    backend = make_app(quirky(quirk)).backend
    for state, value in (("STARTED", {}), ("PROGRESS", {"done": 1}), ("SUCCESS", 42), ("FAILURE", ValueError("late"))):
        backend.store_result("id", value, state)
    assert backend.get_task_meta("id")["result"] == 42


def _large(opened: Opened, key: str, fill: bytes, **how: Any) -> str:
    return opened.writer.write(key, [fill * _MIB] * 9, size=9 * _MIB, **how)


def test_completions_without_conditions(opened):
    """A SUCCESS that is stored while a large result goes up stays; an ETag that the completion lacks is read."""
    one = opened("unconditional_completion", "bare_if_match")
    etag = _large(one, "k", b"a", precondition=CREATE)
    assert etag == one.store.get("k", length=1).etag
    assert _large(one, "k", b"b", precondition=Match(etag)) != etag
    for stale in (CREATE, Match(etag)):
        with pytest.raises(PreconditionFailed):
            _large(one, "k", b"c", precondition=stale)
    assert one.store.get("k", length=1).body == b"b"


@pytest.mark.parametrize("quirk", ["delete_objects_501", "delete_etag_400", "conditional_delete_501"])
def test_deletes_with_conditions(opened, quirk):
    """Whatever a server makes of conditions: what is to go goes, and another version stays."""
    one = opened(quirk)
    etags = {f"k{n}": one.store.put(f"k{n}", b"1") for n in range(3)}
    one.store.put("k1", b"2")
    assert one.store.delete_unchanged({**etags, "never": etags["k0"]}) == ["k1"]
    assert [entry.key for entry in one.store.list("k")] == ["k1"]


@pytest.mark.parametrize("quirk", ["delete_objects_501", "deleted_without_key", "other_namespace"])
def test_deletes(opened, quirk):
    """Whatever a server makes of batches, and however it answers: what is to go goes."""
    one = opened(quirk)
    for n in range(3):
        one.store.put(f"k{n}", b"1")
    one.store.delete_many(["k0", "k1", "never"])
    assert [entry.key for entry in one.store.list("k")] == ["k2"]


@pytest.mark.parametrize("quirk", ["range_400", "range_416"])
def test_short_objects(opened, quirk):
    """An object that ends before the range does is read whole."""
    one = opened(quirk)
    for body in (b"", b"short"):
        one.store.put("k", body)
        found = one.store.get("k", length=HEAD_BYTES)
        assert (found.body, found.complete) == (body, True)
    with pytest.raises(BadRequest):
        one.store.get("k", start=100, length=10)


def test_one_time_for_one_object(opened):
    """A listing's time is a GET's, in whole seconds, though the server tells milliseconds."""
    one = opened("list_milliseconds")
    one.store.put("k", b"1")
    (entry,) = one.store.list("k")
    assert entry.modified == one.store.get("k").modified


def test_no_last_modified(opened):
    """Without a time a result would never expire, or always: that is an error, which says what is missing."""
    one = opened("no_last_modified")
    one.store.put("k", b"1")
    with pytest.raises(BadRequest, match="no Last-Modified"):
        one.store.get("k")


# -- doctor and init


@pytest.fixture
def command(make_app: Callable[..., Any]) -> Callable[..., Any]:
    """``command(server, "doctor", "--json")``: what it printed, and its exit code."""

    def run(server: Proxy, *arguments: str) -> Any:
        obj = CLIContext(app=make_app(server), no_color=True, workdir=None)
        return CliRunner().invoke(s3, arguments, obj=obj, catch_exceptions=False)

    return run


#: What no server keeps results well with.
_HOPELESS = {"no_last_modified", "list_no_times", "refused_if_match"}


def test_doctor(quirky, command):
    """Every quirk at once that is worked around: nothing fails, and what has to be done is said."""
    done = command(quirky(*sorted(QUIRKS.keys() - _HOPELESS)), "doctor", "--json")
    found = {one["step"]: one for one in json.loads(done.stdout)}
    assert done.exit_code == 0, done.stdout
    assert {step for step, one in found.items() if one["level"] == "WARN"} == {"lifecycle"}
    assert "without its quotes" in found["conditional"]["text"]
    assert "does not tell whose" in found["credentials"]["text"]
    assert "no lifecycle" in found["lifecycle"]["text"]
    assert "s3 sweep" in found["lifecycle"]["remedy"]
    assert "s3 init" not in found["lifecycle"]["remedy"]


def test_doctor_where_nothing_helps(quirky, command):
    """What is not worked around is a finding, and no traceback."""
    done = command(quirky(*_HOPELESS), "doctor", "--json")
    levels = {one["step"]: one["level"] for one in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert levels["GET"] == levels["LIST"] == levels["conditional"] == "FAIL"
    assert levels["cleanup"] == "OK"


@pytest.mark.parametrize("quirk", ["lifecycle_501", "lifecycle_put_400"])
def test_init_without_lifecycle(quirky, command, quirk):
    """Rules that the server cannot take are told as what it lacks, with what to do instead."""
    done = command(quirky(quirk), "init", "--yes")
    assert done.exit_code == 0, done.output
    assert "s3 sweep" in done.output


def test_init_keeps_the_bucket_writable(quirky, command, settings_for):
    """Where blocking public ACLs refuses every write, that flag is taken back; the others stay, also the next time."""
    server = quirky("public_access_block")
    for told in ("BlockPublicAcls", "Nothing to change"):
        done = command(server, "init", "--yes")
        assert done.exit_code == 0, done.output
        assert told in done.output
        settings = settings_for(server)
        with closing(open_store(settings)) as opened:
            opened.store.put("k", b"still writable")


# -- the battery


def _thorough(command: Callable[..., Any], server: Any) -> dict[str, dict[str, str]]:
    done = command(server, "doctor", "--thorough", "--json")
    return {one["name"]: one for one in json.loads(done.stdout)["capabilities"]}


def test_thorough_on_a_server_that_has_all(seaweed, command, settings_for, prefix):
    """Each capability is tried; what SeaweedFS has is told as that, and nothing is left behind."""
    tried = _thorough(command, seaweed)
    assert list(tried) == [one.name for one in CAPABILITIES]
    assert {name for name, one in tried.items() if one["verdict"] != "yes"} == {"odd keys"}
    assert tried["odd keys"]["found"] == "keys with a backslash do not come back as they are"
    with closing(open_store(settings_for(seaweed))) as opened:
        assert list(opened.store.list(prefix)) == []


def test_thorough_tells_every_quirk(quirky, command):
    """Each quirk is found, with what is done about it."""
    tried = _thorough(command, quirky(*sorted(QUIRKS.keys() - _HOPELESS)))
    lacking = {name: one for name, one in tried.items() if one["verdict"] != "yes"}
    assert {one["verdict"] for one in lacking.values()} == {"worked around"}
    assert lacking.keys() == {
        "replace",
        "delete of a version",
        "batch delete",
        "batch delete of versions",
        "range of a short object",
        "conditional completion",
        "ETag of a completion",
        "one time",
        "lifecycle",
    }
    assert "without its quotes" in lacking["replace"]["found"]
    assert "s3 sweep" in lacking["lifecycle"]["instead"]
    assert "replaced" in lacking["conditional completion"]["found"]


def test_thorough_as_a_table(quirky, command, monkeypatch):
    """A row for each capability, behind the steps."""
    ranges = [one for one in CAPABILITIES if one.name.startswith("range")]
    monkeypatch.setattr("celery_s3.operate.capabilities.CAPABILITIES", ranges)
    told = command(quirky("range_400"), "doctor", "--thorough").stdout
    assert told.index("cleanup") < told.index("CAPABILITY")
    assert "worked around" in told
    assert "read whole, at one more request" in told
