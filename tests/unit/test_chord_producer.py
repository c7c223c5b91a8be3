"""Whoever applies a chord: the manifest stands and the ticket is in the body before anything is published."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery, chord, group
from celery.result import AsyncResult, GroupResult
from chord_world import World

from celery_s3.chords.manifest import Manifest
from celery_s3.chords.producer import Producer
from celery_s3.chords.survey import Survey
from celery_s3.chords.ticket import TICKET, Ticket
from celery_s3.errors import ServerFault
from celery_s3.store.memory import Fault

KEY = "base/celery-chords/new/manifest"


@pytest.fixture
def app():
    with Celery("unit", broker="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def world():
    return World()


def header(*ids):
    return [AsyncResult(id) for id in ids]


def test_the_manifest_and_the_ticket(app, world):
    """The manifest has the members' ids and the body without a ticket; the ticket leads to it."""
    body = app.signature("body", options={"task_id": "b", TICKET: "that of an earlier application"})
    assert Producer(app, world.chords, lambda: True).open("new", iter(header("a", "b")), body)
    manifest = Manifest.loads(world.store.get(KEY).body)
    assert (manifest.ids, manifest.nesting, manifest.root) == (("a", "b"), None, None)
    assert json.loads(manifest.body)["options"] == {"task_id": "b"}
    assert Ticket.loads(body.options[TICKET]) == Ticket("new", 2, True, manifest.nonce, prefix="base/celery-chords/")


def test_a_nested_header(app, world):
    """Where the header is nested, the manifest tells the members' slots."""
    body = app.signature("body")
    Producer(app, world.chords, lambda: True).open("new", [*header("a"), GroupResult("g", header("b", "c"))], body)
    manifest = Manifest.loads(world.store.get(KEY).body)
    assert (manifest.ids, manifest.nesting) == (("a", "b", "c"), [0, [1, 2]])
    assert not Ticket.loads(body.options[TICKET]).flat


def test_applied_by_a_task(world):
    """The manifest has the root that the header's tasks inherit."""
    conf = {"task_serializer": "json"}
    app = SimpleNamespace(
        conf=SimpleNamespace(get=conf.get, **conf),
        current_worker_task=SimpleNamespace(request=SimpleNamespace(root_id=None, id="applier")),
    )
    Producer(app, world.chords, lambda: True).open("new", header("a"), Celery("unit").signature("body"))
    assert Manifest.loads(world.store.get(KEY).body).root == "applier"


@pytest.mark.parametrize(("native", "conditional"), [(False, True), (True, False)])
def test_chords_that_celery_runs(app, world, native, conditional):
    """Where native chords are off, or the bucket keeps no conditions, nothing is written and the body says so."""
    app.conf.result_backend_transport_options = {"native_chords": native}
    body = app.signature("body")
    assert not Producer(app, world.chords, lambda: conditional).open("new", header("a"), body)
    assert body.options[TICKET] is None
    assert world.store.requests == []


def test_a_manifest_that_cannot_be_written(app, world):
    """It is raised, so that Celery publishes nothing; no ticket leads to nowhere."""
    world.store.faults.append(Fault(ServerFault("down")))
    body = app.signature("body")
    with pytest.raises(ServerFault):
        Producer(app, world.chords, lambda: True).open("new", header("a"), body)
    assert TICKET not in body.options


def test_applied_again(app, world, caplog):
    """The same frozen chord joins the one under way; once that is decided, no ticket, and one line says why."""

    def apply():
        body = app.signature("body", options={"task_id": "b", TICKET: "that of an earlier application"})
        assert Producer(app, world.chords, lambda: True).open("new", header("a"), body)
        return body.options.get(TICKET)

    first = apply()
    assert apply() == first
    assert world.chords.claim("new").acquire() is None
    assert apply() == first
    claim = world.chords.claim("new")
    assert claim.take_over(claim.read())
    claim.mark("sent")
    assert not caplog.messages
    assert apply() is None
    (line,) = caplog.messages
    assert "Chord new is applied again, and was decided before" in line


class Stream:
    """A chord with a generated header, as Celery applies it; its messages are noted, and sent nowhere."""

    def __init__(self, app, world, header):
        self.world, self.sent = world, []
        self.producer = Producer(app, world.chords, lambda: True)
        app.backend.apply_chord = lambda args, body, **_: self.producer.open(args[0], args[1], body)
        app.backend.set_chord_size = lambda group, size: self.producer.sized(group)
        app.amqp.send_task_message = self.note
        self.body = chord(header, app.signature("body"), app=app).apply_async()

    def note(self, producer, name, message, **_):
        self.sent.append((message.headers["id"], message.headers["group_index"], message.body[2]["chord"].options))
        self.sent[-1] = (*self.sent[-1][:2], Ticket.loads(dict(self.sent[-1][2][TICKET])))

    @property
    def manifest(self):
        return Manifest.loads(self.world.store.get(f"base/celery-chords/{self.body.parent.id}/manifest").body)


def test_a_generated_header(app, world):
    """Tasks are sent as they are made, with a ticket that tells no size; the last one has it, and the manifest."""
    stream = Stream(app, world, (app.signature("add", args=(number,)) for number in range(40)))
    ids, indexes, tickets = zip(*stream.sent, strict=True)
    assert [ticket.size for ticket in tickets] == [0] * 39 + [40]
    assert indexes == tuple(range(40))
    assert stream.manifest.ids == ids
    assert {ticket.nonce for ticket in tickets} == {stream.manifest.nonce}
    assert len(stream.producer._streams) == 0


def test_a_generated_header_of_tasks_and_groups(app, world):
    """From the first group on all is generated: those behind it find their places in the manifest."""
    add = partial(app.signature, "add")
    header = [*(add(args=(n,)) for n in range(20)), group([add(), add()], app=app), add()]
    stream = Stream(app, world, (one for one in header))
    sizes = [ticket.size for _, _, ticket in stream.sent]
    assert sizes == sorted(sizes)
    assert set(sizes) == {0, 23}
    assert all(ticket.flat != bool(ticket.size) for _, _, ticket in stream.sent)
    assert stream.manifest.nesting == [*range(20), [20, 21], 22]
    early = [(id, index) for id, index, ticket in stream.sent if not ticket.size]
    assert all(stream.manifest.ids[index] == id for id, index in early)


def test_a_generator_that_fails(app, world):
    """Its error is its sender's; what was sent waits for ever, as on Redis, and counts as a chord that runs."""

    def header():
        yield from (app.signature("add") for _ in range(5))
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        Stream(app, world, header())
    found = next(one for one in Survey(world.chords, lambda id, since: None).chords() if one.group != "g")
    assert (found.state, found.manifest.open) == ("running", True)


def test_the_group_id_of_another_chord(app, world, caplog):
    """Two chords cannot share their objects: Celery's task joins the second one, and the log says what to change."""
    producer, body = Producer(app, world.chords, lambda: True), app.signature("body")
    assert producer.open("new", header("a"), body)
    assert not producer.open("new", header("b"), body)
    assert body.options[TICKET] is None
    assert "The group id of chord new is that of an earlier one" in caplog.text
