"""What a backend knows of expiry, without a backend: terms, rules, and a daily cleanup that ends."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from celery_s3.bucket import Opened
from celery_s3.errors import AccessDenied
from celery_s3.expiry import service
from celery_s3.expiry.service import CLEANUP_SECONDS, Expiry
from celery_s3.expiry.sweep import Sweep
from celery_s3.expiry.terms import DAY, Terms
from celery_s3.keys import Layout
from celery_s3.metadata import TERM_HEADER, result_metadata
from celery_s3.settings import Settings
from celery_s3.store.counting import Tally
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool

LAYOUT = Layout()
TERMS = Terms(results=7 * DAY, failures=7 * DAY, chords=15 * DAY, decided=15 * DAY, messages=None)
NOW = 1_700_000_000.0


class Control:
    """The bucket's own settings and unfinished uploads, as its server tells them."""

    def __init__(self):
        self.rules = []
        self.asked = 0
        self.skew = time.time() - NOW

    def lifecycle(self):
        self.asked += 1
        if isinstance(self.rules, Exception):
            raise self.rules
        return self.rules

    def region(self):
        return "us-east-1"

    def uploads(self, prefix):
        return []


class Repairs:
    def __init__(self):
        self.now = None

    def at(self, now):
        self.now = now()
        return self

    def remains(self):
        return iter(())


@pytest.fixture
def control(monkeypatch):
    control = Control()
    monkeypatch.setattr(service, "Control", lambda settings: control)
    return control


@pytest.fixture
def repairs():
    return Repairs()


@pytest.fixture
def store():
    return MemoryStore(clock=lambda: NOW - 30 * DAY)


@pytest.fixture
def expiry(control, repairs, store):
    """``expiry(terms, **settings)``"""

    def make(terms=TERMS, **settings):
        bucket = Opened(store, store, None, Tally(), None, Pool(1))
        return Expiry(bucket, Settings(bucket="memory", **settings), LAYOUT, terms, repairs.at)

    return make


# -- the terms of one result


@pytest.mark.parametrize(
    ("failures", "state", "headers", "own"),
    [
        (7 * DAY, "SUCCESS", None, None),
        (7 * DAY, "FAILURE", None, None),
        (DAY, "SUCCESS", None, None),
        (DAY, "FAILURE", None, DAY),
        (None, "FAILURE", None, 0.0),
        (DAY, "FAILURE", {TERM_HEADER: 60}, 60),
        (DAY, "SUCCESS", {TERM_HEADER: 0}, 0),
    ],
)
def test_the_term_of_one_result(failures, state, headers, own):
    """A call's own term comes first, then that of failures; what is as any says nothing, so that it costs no bytes."""
    terms = Terms(results=7 * DAY, failures=failures, chords=None, decided=15 * DAY, messages=None)
    assert terms.of_result(state, SimpleNamespace(headers=headers, id="t")) == own
    assert terms.of_result(state, None) == (
        own if headers is None else terms.of_result(state, SimpleNamespace(headers=None))
    )


# -- rules


def test_results_that_the_rules_delete(expiry, control):
    """Where the bucket has our rules, nobody else need delete; one request tells."""
    one = expiry()
    control.rules = one.rules()
    assert one.left_to_rules()
    assert control.asked == 1


def test_results_that_no_rule_deletes(expiry, control):
    """Rules that are missing, later or refused: somebody has to clean up. It is never raised: beat must start."""
    one = expiry()
    assert not one.left_to_rules()
    control.rules = expiry(Terms(9 * DAY, 9 * DAY, 15 * DAY, 15 * DAY, None)).rules()
    assert not one.left_to_rules()
    for error in (AccessDenied("no"), RuntimeError("?")):
        control.rules = error
        assert not one.left_to_rules()


def test_results_that_live_for_ever(expiry, control):
    """Where some never expire and no tag tells them from others, no rule can delete all: the bucket is not asked."""
    assert not expiry(Terms(7 * DAY, None, None, 15 * DAY, None)).left_to_rules()
    assert control.asked == 0


# -- deleting


def test_the_server_tells_the_time(expiry, repairs):
    """What has expired is told by the server's clock, for chords too, whatever this machine's shows."""
    sweep = expiry().sweep()
    assert NOW - 2 <= sweep.now() <= NOW + 60
    assert abs(repairs.now - datetime.fromtimestamp(NOW, UTC)).total_seconds() < 60


def test_the_daily_cleanup(expiry, store, caplog):
    """It deletes what has expired; a line in the log tells how much."""
    store.put("celery-task-meta-old", b"{}", metadata=result_metadata("SUCCESS"))
    with caplog.at_level(logging.INFO):
        expiry().cleanup()
    assert list(store.list("")) == []
    assert "deleted results 1 (2 bytes)" in caplog.text


def test_the_daily_cleanup_ends(expiry, monkeypatch):
    """It is given ten minutes: a task that takes longer is taken for lost by some brokers, and comes again."""
    given = []
    run = Sweep.run
    monkeypatch.setattr(Sweep, "run", lambda self, **how: given.append(how) or run(self, **how))
    expiry().cleanup()
    assert given == [{"seconds": CLEANUP_SECONDS}]
    assert CLEANUP_SECONDS == 600


def test_a_dry_run_deletes_nothing(expiry, store):
    """It tells what would be deleted."""
    store.put("celery-task-meta-old", b"{}", metadata=result_metadata("SUCCESS"))
    assert expiry().sweep(dry_run=True).run().count == 1
    assert len(list(store.list(""))) == 1
