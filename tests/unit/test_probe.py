"""A server is asked about conditional writes before they are relied upon, and as rarely as possible."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from celery_s3.chords.claim import Claim
from celery_s3.errors import (
    AccessDenied,
    BadRequest,
    ConfigurationError,
    Interrupted,
    PreconditionFailed,
    Throttled,
    Unreachable,
)
from celery_s3.results.write_once import Results, WriteOutcome
from celery_s3.settings import Settings
from celery_s3.store import probe
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.probe import ConditionalWrites, Preconditions, Verdict, ask
from celery_s3.store.requests import Delete, Get, Match, Put
from celery_s3.store.retrying import Retrying

#: Python 3.12 warns of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings for a server that no other test has asked."""
    endpoint = f"http://{uuid.uuid4().hex}.example:9000"

    def make(**values: Any) -> Settings:
        return Settings(**{"bucket": "b", "base": "base/", "endpoint_url": endpoint} | values)

    return make


def test_a_server_that_honours_them(settings):
    """Four requests, of which one is a GET where the object stands already; it is kept."""
    store = MemoryStore()
    assert ConditionalWrites(settings(), store).supported()
    assert store.requests == [("PUT", "base/celery-s3-probe")] * 4
    store.requests.clear()
    assert ConditionalWrites(settings(bucket="another"), store).supported()
    assert [verb for verb, _ in store.requests] == ["PUT", "PUT", "GET", "PUT"]


def test_the_answer_is_remembered(settings):
    """Asked once, also across the backends of a process that use the same bucket."""
    store = MemoryStore()
    probes = [ConditionalWrites(settings(), store) for _ in range(2)]
    assert [probe.supported() for probe in probes * 2] == [True] * 4
    assert len(store.requests) == 4


@pytest.mark.parametrize(
    "endpoint_url", [None, "https://s3.eu-west-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn"]
)
@pytest.mark.parametrize("conditional_writes", ["auto", "required"])
def test_aws_is_not_asked(endpoint_url, conditional_writes):
    """Amazon's own S3 is known to honour them."""
    store = MemoryStore()
    settings = Settings(bucket="b", endpoint_url=endpoint_url, conditional_writes=conditional_writes)
    assert ConditionalWrites(settings, store).supported()
    assert store.requests == []


def test_a_server_that_ignores_them(settings, caplog):
    """One warning for all, which names the server, the consequence and the remedy."""
    store = MemoryStore(conditional=False)
    for _ in range(2):
        assert not ConditionalWrites(settings(), store).supported()
    (record,) = [record for record in caplog.records if record.name.startswith("celery_s3")]
    assert record.levelno == logging.WARNING
    for words in ("example:9000", "replace a SUCCESS", "conditional_writes"):
        assert words in record.getMessage()


class IgnoresMatch(MemoryStore):
    def put(self, key, body, *, precondition=None, **options):
        return super().put(key, body, precondition=None if hasattr(precondition, "etag") else precondition, **options)


def test_a_server_that_honours_only_creates(settings):
    """Both preconditions are needed."""
    assert not ConditionalWrites(settings(), IgnoresMatch()).supported()


class WantsBare(MemoryStore):
    """As Ceph: a right etag is refused unless it comes without its quotes."""

    def send(self, request):
        match request:
            case Put(precondition=Match(etag)):
                request = replace(request, precondition=Match(f'"{etag}"'))
            case Delete(if_match=str(etag)):
                request = replace(request, if_match=f'"{etag}"')
        return super().send(request)


class RefusesAll(MemoryStore):
    """A right etag is refused in any form."""

    def send(self, request):
        if isinstance(request, Put) and isinstance(request.precondition, Match):
            request = replace(request, precondition=Match("of another world"))
        return super().send(request)


def bucket(store, settings):
    """The store as a backend has it, and what asks it."""
    conditional = ConditionalWrites(settings, store)
    return Preconditions(store, conditional.verdict), conditional


def test_etags_without_quotes(settings):
    """Where right etags are refused for their quotes, they go without: asked in one request more, and remembered."""
    store = WantsBare()
    opened, conditional = bucket(store, settings())
    assert conditional.supported()
    assert len(store.requests) == 5
    etag = opened.put("k", b"1")
    store.requests.clear()
    etag = opened.put("k", b"2", precondition=Match(etag))
    with pytest.raises(PreconditionFailed):
        opened.send(Delete("k", '"another"'))
    opened.send(Delete("k", etag))
    assert len(store.requests) == 3


@pytest.mark.parametrize("server", [MemoryStore, WantsBare])
def test_a_claim_does_not_believe_itself_lost(settings, server):
    """A claim is marked and taken over on such servers too, also by a process that has stored no result before."""
    opened, _ = bucket(server(), settings())
    claim = Claim(opened, "claim", 30.0)
    assert claim.acquire() is None
    assert claim.mark("sent")
    other, _ = bucket(server(), settings(bucket="of another worker"))
    claim = Claim(other, "claim", 30.0)
    assert claim.acquire() is None
    other, _ = bucket(other._inner, settings(bucket="of another worker"))
    assert Claim(other, "claim", 30.0).take_over(claim.read())


def test_a_tracked_task(settings):
    """STARTED, progress and SUCCESS are stored: one PUT each after the probe."""
    store = WantsBare()
    opened, conditional = bucket(store, settings())
    results = Results(opened, None, conditional, None, state_in=lambda _: None)
    for state in ("STARTED", "PROGRESS", "SUCCESS"):
        assert results.write("k", state.encode(), state, {"celery-state": state}, "") is WriteOutcome.WRITTEN
    assert len(store.requests) == 5 + 3
    assert store.get("k").body == b"SUCCESS"


def test_a_server_that_replaces_nothing(settings, caplog):
    """Where a right etag is refused in any form, results are read before they are written, and the warning says why."""
    store = RefusesAll()
    opened, conditional = bucket(store, settings())
    assert not conditional.supported()
    assert "the version that stands there is refused" in caplog.text
    results = Results(opened, None, conditional, None, state_in=lambda _: None)
    for state in ("STARTED", "SUCCESS"):
        assert results.write("k", state.encode(), state, {"celery-state": state}, "") is WriteOutcome.WRITTEN


@pytest.mark.parametrize("server", [MemoryStore, WantsBare])
def test_others_ask_at_the_same_time(settings, server):
    """A replacement that another process's question came before says nothing: it is asked again."""
    stored = server()
    ConditionalWrites(settings(), stored).supported()
    times = iter(range(3))

    class Late(type(stored)):
        def send(self, request):
            answer = super().send(request)
            if isinstance(request, Get) and next(times, None) is not None:
                super().send(Put(request.key, os.urandom(8)))
            return answer

    stored.__class__ = Late
    expected = Verdict.KEPT_BARE if server is WantsBare else Verdict.KEPT
    assert ask(stored, "base/celery-s3-probe") is expected


class DoesNotKnow(MemoryStore):
    """Answers an error to the header itself."""

    status = 501

    def put(self, key, body, *, precondition=None, **options):
        if precondition is not None:
            self.requests.append(("PUT", key))
            raise BadRequest("what is this header?", status=self.status)
        return super().put(key, body, **options)


@pytest.mark.parametrize("status", [400, 501])
def test_a_server_that_does_not_know_the_header(settings, status):
    """501 and 400 to the header mean no, where the same write without it succeeds."""
    store = DoesNotKnow()
    store.status = status
    assert not ConditionalWrites(settings(), store).supported()
    assert len(store.requests) <= 4


def test_a_bad_request_for_another_reason_is_an_error(settings):
    """Where the write fails without the header too, the header is not what is wrong."""
    store = MemoryStore()
    store.faults.append(Fault(BadRequest("bad storage class", status=400), times=-1))
    probe = ConditionalWrites(settings(), store)
    with pytest.raises(BadRequest):
        probe.supported()
    store.faults.clear()
    assert probe.supported()


@pytest.mark.parametrize("error", [Throttled, Unreachable, Interrupted, AccessDenied])
@pytest.mark.parametrize("after", range(3))
def test_errors_are_no_answers(settings, error, after):
    """What goes wrong is raised, nothing is remembered, and the next call asks again."""
    store = MemoryStore()
    store.faults.append(Fault(error("no"), after=after))
    probe = ConditionalWrites(settings(), store)
    with pytest.raises(error):
        probe.supported()
    assert probe.supported()


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("after", range(3))
def test_lost_answers_do_not_mislead(settings, conditional, after):
    """A write whose answer got lost is settled by its bytes, which are new each time."""
    store = MemoryStore(conditional=conditional)
    store.faults.append(Fault(Interrupted(), "PUT", after=after, landed=conditional is False or after == 0))
    probe = ConditionalWrites(settings(), Retrying(store, sleep=lambda _: None))
    assert probe.supported() is conditional


def test_required(settings):
    """`required` refuses such a server, each time, and says what to do."""
    probe = ConditionalWrites(settings(conditional_writes="required"), MemoryStore(conditional=False))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="Upgrade the server"):
            probe.supported()


def test_required_and_there(settings):
    """`required` accepts a server that honours them."""
    assert ConditionalWrites(settings(conditional_writes="required"), MemoryStore()).supported()


def test_off(settings, caplog):
    """`off` asks nothing and warns of nothing."""
    store = MemoryStore()
    assert not ConditionalWrites(settings(conditional_writes="off"), store).supported()
    assert store.requests == []
    assert caplog.records == []


def _in_child(question: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if question() else 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), "the child failed"
    return status == 0


@pytest.mark.parametrize("conditional", [True, False])
def test_one_child_asks_for_all(settings, conditional):
    """What one child found out, its parent, its siblings and their successors know without a request or warning."""
    store = MemoryStore(conditional=conditional)
    probe = ConditionalWrites(settings(), store)
    assert _in_child(probe.supported) is conditional
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("celery_s3").addHandler(handler)
    try:
        assert _in_child(lambda: probe.supported() is conditional and not store.requests and not logged)
        assert probe.supported() is conditional
    finally:
        logging.getLogger("celery_s3").removeHandler(handler)
    assert store.requests == []
    assert logged == []


def test_others_who_ask_at_the_same_time():
    """Whoever loses every race for the key learns from what the winners wrote: nobody is left without an answer."""

    class Overtaken(MemoryStore):
        """Another one asks before each replacement that names what stands there."""

        another = False

        def send(self, request):
            replaces = isinstance(request, Put) and isinstance(request.precondition, Match)
            if replaces and not self.another and request.precondition != probe._NEVER:
                self.another = True
                assert ask(self, request.key) is Verdict.KEPT
                self.another = False
            return super().send(request)

    assert ask(Overtaken(), "celery-s3-probe") is Verdict.KEPT
