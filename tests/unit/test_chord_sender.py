"""What the owner of a chord's claim does: one message, or a failure that reaches everybody who waits."""

from __future__ import annotations

import json

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError, SoftTimeLimitExceeded
from chord_world import Host
from kombu.exceptions import OperationalError

from celery_s3.celery_private import current_task
from celery_s3.chords import Manifest, sender
from celery_s3.chords.claim import PUBLISHING
from celery_s3.chords.parts import UNREADABLE
from celery_s3.chords.sender import Sender
from celery_s3.chords.ticket import TICKET
from celery_s3.errors import BodyNotSent, Garbled, MessageNotStored, NotRepaired, ResultNotRead, ServerFault


@pytest.fixture
def app():
    with Celery("unit", broker="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def host(app):
    return Host(app)


@pytest.fixture
def sent(monkeypatch):
    """The values of each body that was sent, and the id of the task that it was sent by."""
    sent = []

    def publish(app, send, values):
        task = current_task()
        sent.append((values, task and task.request.id))

    monkeypatch.setattr(sender, "publish", publish)
    return sent


def sig(app, name, id="", **options):
    return app.signature(name, options={"task_id": id, **options} if id else options)


def part(task_id, value, state="SUCCESS"):
    return json.dumps([task_id, state, value]).encode()


def manifest(ids=("t0", "t1"), nesting=None, body=b"{}"):
    return Manifest(ids, nesting, body)


PARTS = [[part("t0", 1)], [part("t1", 2), part("added", 3)]]


def test_the_body_is_sent_with_its_values(host, sent):
    """In the header's order, what a member added behind its own; the ticket stays behind."""
    body = sig(host.app, "body", "b", **{TICKET: {"group": "g"}})
    assert Sender(host, resend=True).decide(dict(body), PARTS, manifest(), False)() == "sent"
    assert sent == [([1, 2, 3], None)]
    assert TICKET in body.options  # others hold the same signature
    assert host.results == {}


def test_nested_headers(host, sent):
    """Values are nested as the header was."""
    parts = [[part(f"t{number}", number)] for number in range(3)]
    Sender(host, resend=True).decide(
        sig(host.app, "body", "b"), parts, manifest(("t0", "t1", "t2"), [[0, 1], 2]), False
    )()
    assert sent == [([[0, 1], 2], None)]


def test_a_failed_member(host, sent):
    """No body is sent; its result is a ChordError that names the member and has the member's error as its cause."""
    parts = [[part("t0", 1)], [part("t1", "unlucky", "FAILURE")]]
    assert Sender(host, resend=True).decide(sig(host.app, "body", "b"), parts, manifest(), False)() == "failed"
    assert sent == []
    ((id, error),) = host.errors
    assert (id, str(error)) == ("b", "Dependency t1 raised RuntimeError('unlucky')")
    assert isinstance(error.__cause__, RuntimeError)


def test_a_retried_member_is_no_failure(host, sent):
    """A state that has an exception and is none of a failure counts with its value."""
    Sender(host, resend=True).decide(
        sig(host.app, "body", "b"), [[part("t0", "later", "RETRY")]], manifest(("t0",)), False
    )()
    assert [type(values[0]) for values, _ in sent] == [RuntimeError]


@pytest.mark.parametrize(
    ("payload", "message"),
    [(UNREADABLE + b"its seal is broken", "its seal is broken"), (b"garbage", "Join error: JSONDecodeError")],
)
def test_a_part_that_cannot_be_read(host, sent, payload, message):
    """The chord ends in an error that says why."""
    assert (
        Sender(host, resend=True).decide(sig(host.app, "body", "b"), [[payload]], manifest(("t0",)), False)()
        == "failed"
    )
    assert message in str(host.errors[0][1])
    assert sent == []


@pytest.mark.parametrize(("count", "hint"), [(1, False), (10, True)])
def test_a_broker_that_refuses(host, monkeypatch, count, hint):
    """The error says what the broker said; of a large message also its size and the remedy."""

    def refuse(*_):
        raise OSError("too long")

    monkeypatch.setattr(sender, "publish", refuse)
    parts = [[part(f"t{number}", "x" * 5000)] for number in range(count)]
    Sender(host, resend=True).decide(sig(host.app, "body", "b"), parts, manifest(("t0",)), False)()
    text = str(host.errors[0][1])
    assert text.startswith("Callback error: OSError('too long')")
    assert ("s3+json" in text) is hint


@pytest.mark.parametrize("error", [OperationalError("no route"), ConnectionRefusedError(), MessageNotStored("down")])
def test_a_broker_that_is_away(host, monkeypatch, error):
    """The chord does not fail for that: nothing is stored, and the same may be called again."""
    answers = [error, None]

    def publish(*_):
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(sender, "publish", publish)
    ready = Sender(host, resend=True).decide(sig(host.app, "body", "b"), PARTS, manifest(), False)
    with pytest.raises(BodyNotSent, match="its body could not be sent"):
        ready()
    assert (host.errors, host.results) == ([], {})
    assert ready() == "sent"


def test_one_call_to_the_broker_does_not_outlast_the_lease(host, monkeypatch):
    """Whatever a body's own `retry_policy` says: who owns the claim tries again and again, and renews it meanwhile."""
    policies = []

    def publish(app, send, values):
        policies.append(send.__self__.options["retry_policy"])

    monkeypatch.setattr(sender, "publish", publish)
    body = sig(host.app, "body", "b", retry_policy={"max_retries": 200, "interval_max": 60, "retry_errors": (OSError,)})
    Sender(host, resend=True).decide(body, PARTS, manifest(), False)()
    assert policies == [{**PUBLISHING, "retry_errors": (OSError,)}]
    assert body.options["retry_policy"]["max_retries"] == 200


@pytest.mark.parametrize(
    "trouble", [SoftTimeLimitExceeded(), MemoryError(), ServerFault("down"), ResultNotRead("no", "b")]
)
@pytest.mark.parametrize("step", ["join", "begun", "send"])
def test_trouble_of_this_process_does_not_fail_the_chord(host, monkeypatch, trouble, step):
    """It is raised, and another try, or another process, goes on."""

    def fail(*_, **__):
        raise trouble

    if step == "send":
        monkeypatch.setattr(sender, "publish", fail)
    else:
        monkeypatch.setattr(host, "decode" if step == "join" else "get_task_meta", fail)
    expected = BodyNotSent if step == "send" and isinstance(trouble, ServerFault) else type(trouble)
    with pytest.raises(expected):
        Sender(host, resend=True).decide(sig(host.app, "body", "b"), PARTS, manifest(), step == "begun")()
    assert (host.errors, host.results) == ([], {})


# -- an owner before this one that may have sent


@pytest.mark.parametrize("state", ["SUCCESS", "STARTED"])
def test_a_body_that_has_begun_is_not_sent_again(host, sent, state):
    """Whatever is stored for the body proves that it was sent."""
    host.results["b"] = (state, None)
    assert Sender(host, resend=True).decide(sig(host.app, "body", "b"), PARTS, manifest(), True)() == "sent"
    assert sent == []


def test_a_chain_that_has_begun_is_not_sent_again(host, sent):
    """Of a larger body the tasks that it begins with prove it."""
    body = chain(sig(host.app, "one", "first"), sig(host.app, "two", "second"), app=host.app)
    host.results["first"] = ("SUCCESS", 1)
    assert Sender(host, resend=True).decide(body, PARTS, manifest(), True)() == "sent"
    assert sent == []


def test_a_body_that_nothing_is_known_of_is_sent_again(host, sent):
    """Rather twice than never, unless `chord_resend` says otherwise: then the body fails."""
    body = sig(host.app, "body", "b")
    assert Sender(host, resend=True).decide(body, PARTS, manifest(), True)() == "sent"
    assert len(sent) == 1
    assert Sender(host, resend=False).decide(body, PARTS, manifest(), True)() == "failed"
    assert len(sent) == 1
    assert "chord_resend" in str(host.errors[0][1])


# -- a failure reaches everybody who waits


def test_the_ends_of_a_group(host, sent):
    """Each task that a body ends with has the failure for its result, unless it has one."""
    body = group([sig(host.app, "one", "b1"), sig(host.app, "two", "b2")], app=host.app)
    host.results["b2"] = ("SUCCESS", "before")
    Sender(host, resend=True).fail(body, error := ChordError("x"))
    assert host.results["b1"] == ("FAILURE", error)
    assert host.results["b2"] == ("SUCCESS", "before")


def test_the_end_of_a_chain(host):
    """What is waited for is the chain's last task."""
    body = chain(sig(host.app, "one", "b1"), sig(host.app, "two", "b2"), app=host.app)
    Sender(host, resend=True).fail(body, error := ChordError("x"))
    assert host.results["b2"] == ("FAILURE", error)
    assert "b1" not in host.results


def test_a_body_that_is_a_chord(host):
    """Both the chord and its body fail."""
    body = chord([sig(host.app, "one", "h")], sig(host.app, "two", "inner"), app=host.app, task_id="outer")
    Sender(host, resend=True).fail(body, ChordError("x"))
    assert [id for id, _ in host.errors] == ["outer", "inner"] if body.id else host.results["inner"][0] == "FAILURE"


def test_an_outer_chord_hears_of_it(host):
    """A body that is itself a member of another chord delivers its failure there."""
    outer = {"task": "outer", "options": {TICKET: {"group": "o"}}}
    Sender(host, resend=True).fail(sig(host.app, "body", "b", chord=outer), error := ChordError("x"))
    assert host.returned == [("b", "FAILURE", error)]


def test_a_failure_that_an_owner_before_could_not_tell(host, sent):
    """It stored the body's failure and died: an outer chord still hears of it."""
    host.results["b"] = ("FAILURE", error := ChordError("x"))
    body = sig(host.app, "body", "b", chord={"task": "outer", "options": {}})
    assert Sender(host, resend=True).decide(body, PARTS, manifest(), True)() == "sent"
    assert host.returned == [("b", "FAILURE", error)]


# -- where nobody can decide, or none of the chord's tasks is at hand


@pytest.mark.parametrize("begun", [True, False])
def test_giving_up(host, begun):
    """A chord that nobody can decide fails, unless its body has begun."""
    if begun:
        host.results["b"] = ("STARTED", None)
    Sender(host, resend=True).give_up(sig(host.app, "body", "b"), Garbled("no claim", "get", key="k"))
    assert bool(host.errors) is not begun


def test_sent_as_by_the_last_member(host, sent):
    """Who mends a chord sends its body from the manifest, with the last member for its parent."""
    body = json.dumps(sig(host.app, "body", "b")).encode()
    act = Sender(host, resend=True).without_a_task(manifest(body=body), trusted=False)
    assert act(PARTS, manifest(body=body), False)() == "sent"
    assert sent == [([1, 2, 3], "t1")]
    assert current_task() is None


@pytest.mark.parametrize("body", [b"garbage", b"{}"])
def test_who_cannot_send_does_not_decide(host, monkeypatch, body):
    """Without the body, or without a broker, the chord is left to others."""
    if body == b"{}":
        monkeypatch.setattr(host.app, "connection_for_write", lambda: host.app.connection("redis://127.0.0.1:1/0"))
    with pytest.raises(NotRepaired):
        Sender(host, resend=True).without_a_task(manifest(body=body), trusted=False)
