"""What somebody can do who may only list, only read, delete, or put back: the cells of docs/security.md, one by one.

The world is that of ``test_hostile_bucket.py``; there they all play at once.
"""

from __future__ import annotations

import json

import pytest
from celery import chord, states
from celery.signals import before_task_publish
from test_hostile_bucket import LAYOUT, VALUES, Hostile, HostileSealed

from celery_s3.celery_private import sending_as
from celery_s3.errors import CeleryS3Error
from celery_s3.notices.notice import dumps, loads
from celery_s3.operate.policy import document
from celery_s3.results.waiter import in_notice
from celery_s3.settings import Settings
from celery_s3.store.requests import Put

SECRET = "a value that nobody else shall know"
BOTH = pytest.mark.parametrize("world", [Hostile, HostileSealed], indirect=True)


@pytest.fixture
def world(request):
    """Workers, clients and a bucket, with keys or without."""
    one = request.param()
    yield one
    one.teardown()


@pytest.fixture
def sent(world, monkeypatch):
    """The ids of the bodies that were sent."""
    ids = []

    def published(sender, headers, body, **_):
        if sender == "body":
            ids.append(headers["id"])

    before_task_publish.connect(published)
    yield ids
    before_task_publish.disconnect(published)


def copies(world):
    """Everything that stands in the bucket."""
    return [world.store.get(entry.key) for entry in world.store.list("")]


def put_back(world, objects):
    for one in objects:
        world._write(one.key, one, one.body)


@BOTH
def test_who_lists(world):
    """Sees ids, sizes and times, and no more."""
    world.backend.store_result("a", SECRET, states.SUCCESS)
    (entry,) = world.store.list("")
    assert entry.key == LAYOUT.result_key("a")
    assert SECRET not in repr(entry)


@pytest.mark.parametrize(("world", "seen"), [(Hostile, True), (HostileSealed, False)], indirect=["world"])
def test_who_reads(world, seen):
    """Sees all values; of what is sealed the state, and no value."""
    world.backend.store_result("a", SECRET, states.SUCCESS)
    (found,) = copies(world)
    assert (SECRET.encode() in found.body) == seen
    assert found.metadata["celery-state"] == states.SUCCESS


@BOTH
def test_who_deletes(world, sent):
    """A result is pending then; a chord waits, its body is not sent with less than all values."""
    world.backend.store_result("a", SECRET, states.SUCCESS)
    world.apply_chord(2)
    world.run_member(0, 1, again=False)
    for found in copies(world):
        world.store.delete(found.key)
    assert world._meta("a")["status"] == states.PENDING
    world.run_member(0, 2, again=False)
    world.mend(60 * 24 * 20)
    assert sent == []
    assert world.wrong == []


@BOTH
def test_who_puts_a_result_back(world):
    """Sets it back to what it was; that of another task he cannot make of it where it is sealed."""
    world.backend.store_result("a", "first", "PROGRESS")
    before = copies(world)
    world.backend.store_result("a", "second", states.SUCCESS)
    put_back(world, before)
    assert world._meta("a")["result"] == "first"
    (old,) = before
    world.store.put(LAYOUT.result_key("b"), old.body, metadata=old.metadata, content_type=old.content_type)
    if world.keys:
        with pytest.raises(CeleryS3Error):
            world._meta("b")


@BOTH
def test_who_puts_a_chord_back(world, sent):
    """A body whose own result stands is not sent again by who looks after chords."""
    world.apply_chord(1)
    before = copies(world)
    world.run_member(0, 1, again=False)
    (body,) = sent
    world.backend.store_result(body, "done", states.SUCCESS)
    for found in copies(world):
        if found.key.startswith(LAYOUT.chords):
            world.store.delete(found.key)
    put_back(world, before)
    world.mend(5)
    assert sent == [body]


@BOTH
def test_who_puts_a_chord_back_and_a_member_comes_again(world, sent):
    """A body whose own result stands is not sent again, where the broker delivers one of its members again."""
    world.apply_chord(2)
    world.run_member(0, 1, again=True)
    world.run_member(1, 2, again=True)
    (body,) = sent
    before = [one for one in world.seen if one.key.startswith(LAYOUT.chords) and not one.key.endswith("/claim")]
    world.backend.store_result(body, "done", states.SUCCESS)
    for found in copies(world):
        if found.key.startswith(LAYOUT.chords):
            world.store.delete(found.key)
    put_back(world, before)
    world.run_member(1, 2, again=True, redelivered=True)
    assert sent == [body]
    # the same, where he leaves the parts to the broker
    for found in copies(world):
        if found.key.endswith(("/claim", "/0/1")):
            world.store.delete(found.key)
    put_back(world, [one for one in before if one.key.endswith("/0/0")])
    world.run_member(1, 2, again=True, redelivered=True)
    assert sent == [body]


@BOTH
def test_who_removes_a_chord_and_its_applier_comes_again(world, sent):
    """A body whose own result stands is not sent again, where the task that applies the chord is delivered again."""
    body = world.app.signature("body").clone()
    body.freeze()
    world.bodies.add(body.id)
    frozen = chord([world.app.signature("member")], body, app=world.app)
    frozen.freeze(group_id="g")
    cleanup = world.app.tasks["celery.backend_cleanup"]
    for again in (False, True):
        with sending_as(cleanup, id="applier", called_directly=False, delivery_info={"redelivered": again}):
            frozen.clone().run(frozen.tasks, frozen.body, (), task_id="g")
        world.run_member(0, 1, again=False)
        world.backend.store_result(body.id, "done", states.SUCCESS)
        for found in copies(world):
            if found.key.startswith(LAYOUT.chords):
                world.store.delete(found.key)
    assert sent == [body.id]


@BOTH
def test_who_tells_of_results(world):
    """A notice is no more than an object in the bucket: without keys it may be forged, with keys it is an error."""
    key = LAYOUT.result_key("a")
    body = json.dumps({"status": "SUCCESS", "result": "forged", "task_id": "a", "children": []}).encode()
    notice = loads(dumps(key, Put(key, body, None, {"celery-state": "SUCCESS"}, "application/json")))
    told = in_notice("a", world._meta, notice.stored)
    assert told is None if world.keys else told["result"] == "forged"
    pickled = loads(dumps(key, Put(key, b"\x80\x04N.", None, {}, "application/x-python-serialize")))
    assert in_notice("a", world._meta, pickled.stored) is None


@BOTH
def test_a_notice_of_another_task(world):
    """The bytes of one task's result are not another's, whatever key they are told under."""
    world.backend.store_result("b", VALUES[1], states.SUCCESS)
    (stored,) = copies(world)
    key = LAYOUT.result_key("a")
    put = Put(key, stored.body, None, dict(stored.metadata), stored.content_type)
    told = in_notice("a", world._meta, loads(dumps(key, put)).stored)
    assert told is None if world.keys else told["result"] == VALUES[1]
    other = loads(dumps(LAYOUT.result_key("b"), put)).stored
    assert in_notice("a", world._meta, other) is None


def allowed(role):
    """What a role may do, by the last part of the resource."""
    found = set()
    for statement in document(Settings(bucket="b"), role, messages=True)["Statement"]:
        resources = statement["Resource"]
        for resource in [resources] if isinstance(resources, str) else resources:
            found |= {(action, resource.rpartition(":")[2]) for action in statement["Action"]}
    return found


def test_roles_at_worst():
    """Clients put large messages and do not read them; nobody but the administrator changes anything of the bucket."""
    messages = "b/celery-messages/*"
    assert ("s3:PutObject", messages) in allowed("client")
    assert ("s3:GetObject", messages) not in allowed("client")
    assert {("s3:GetObject", messages), ("s3:DeleteObject", messages)} <= allowed("worker")
    for role in ("client", "worker", "operator"):
        of_bucket = {action for action, where in allowed(role) if where == "b"}
        assert {action for action in of_bucket if not action.startswith(("s3:List", "s3:Get"))} == set()
