"""Stuck chords on SeaweedFS, mended by the backend: the same message, once, beside workers and each other."""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group, states
from celery.app.trace import build_tracer
from celery.exceptions import TimeoutError

from celery_s3.chords.manifest import Manifest
from celery_s3.chords.parts import pack_part
from celery_s3.chords.repair import KEPT
from celery_s3.errors import NotRepaired
from celery_s3.expiry import clock
from devtools.proxy import Proxy

KEY = base64.b64encode(bytes(32)).decode()
#: Seconds; Last-Modified has whole ones.
LEASE = 0.2


class Lab:
    """An app whose messages the test takes off the queue, and runs as a worker does."""

    def __init__(self, app):
        self.app = app
        self.backend = app.backend
        self.backend.chords.lease = LEASE

        @app.task(name="add", shared=False)
        def add(x, y):
            return x + y

        @app.task(name="fail", shared=False)
        def fail(*_):
            raise ValueError("unlucky")

        @app.task(name="total", shared=False)
        def total(numbers, *_):
            return sum(numbers)

        self.add, self.fail, self.total = add, fail, total

    def messages(self):
        """Everything on the queue."""
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue](connection.default_channel)
            taken = []
            while (message := queue.get(accept={"json", "pickle"})) is not None:
                message.ack()
                taken.append(message)
        return taken

    def perform(self, message):
        args, kwargs, embed = message.payload
        task = self.app.tasks[message.headers["task"]]
        request = {**message.headers, **embed, "delivery_info": message.delivery_info, "hostname": "here"}
        build_tracer(task.name, task, app=self.app)(message.headers["id"], args, kwargs, request)

    @contextmanager
    def dying(self):
        """Whoever finishes in here dies once its part and its result are stored."""
        self.backend.on_chord_part_return = lambda *args, **kwargs: None
        yield
        del self.backend.on_chord_part_return

    @contextmanager
    def working(self):
        """A thread performs what comes."""
        done = threading.Event()

        def work():
            while not done.wait(0.05):
                for message in self.messages():
                    self.perform(message)

        thread = threading.Thread(target=work)
        thread.start()
        yield
        done.set()
        thread.join()

    def names(self):
        return [entry.key for entry in self.backend.store.list(self.backend.chords.prefix)]

    def states(self, **options):
        return [each.state for each in self.backend.repairs.survey.chords(**options)]

    def stuck(self, signature):
        """Apply a chord, run its header, and lose everybody who could go on."""
        result = signature.apply_async()
        with self.dying():
            for message in self.messages():
                self.perform(message)
        time.sleep(2 * LEASE)
        return result


@pytest.fixture
def lab(seaweed, make_app, monkeypatch):
    # The server tells its time in whole seconds, and a lease is shorter here.
    monkeypatch.setattr(clock, "server_clock", lambda control: time.time)
    return lambda **conf: Lab(make_app(seaweed, **conf))


def told(message):
    """A message without what its delivery adds."""
    properties = {name: message.properties[name] for name in ("correlation_id", "reply_to", "priority")}
    return message.headers, message.body, properties, message.delivery_info["routing_key"]


BODIES = {
    "task": lambda lab: lab.total.s(1),
    "options": lambda lab: (
        lab.total.s()
        .set(priority=3, eta=datetime(2040, 1, 1, tzinfo=UTC), shadow="sum", headers={"x": 1})
        .on_error(lab.fail.s("body"))
    ),
    "stamps": lambda lab: lab.total.s().stamp(customer="c1"),
    "link": lambda lab: lab.total.si([1]).set(link=lab.add.s(1)),
    "chain": lambda lab: chain(lab.total.s(), lab.add.s(1), lab.add.s(2)),
    "group": lambda lab: group(lab.total.s(), lab.total.s(2)),
    "chord": lambda lab: chord([lab.total.s(), lab.total.s(2)], lab.total.s(3)),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_the_same_message(lab, seaweed, body, serializer):
    """A repaired chord sends, byte for byte, the message that its last member would have sent."""
    conf = dict.fromkeys(("task_serializer", "result_serializer", "event_serializer"), serializer)
    if serializer == "pickle":  # what anybody may have written is not unpickled
        conf["s3_backend_settings"] = {**seaweed.settings(), "seal_keys": KEY, "seal": "sign"}
    lab = lab(accept_content=[serializer], **conf)
    signature = chord([lab.add.s(number, 1) for number in range(3)], BODIES[body](lab))
    signature.apply_async()
    header = lab.messages()
    store, before = lab.backend.store, {key: lab.backend.store.get(key).body for key in lab.names()}
    for message in header:
        lab.perform(message)
    normal = lab.messages()

    store.delete_many([entry.key for entry in store.list(lab.backend.settings.base)])
    for key, manifest in before.items():
        store.put(key, manifest)
    with lab.dying():
        for message in header:
            lab.perform(message)
    (found,) = lab.backend.repairs.survey.chords()
    assert lab.backend.repairs.repair(found).state == "sent"
    if body != "chord":  # its header's tasks inherit the time at which they are sent
        assert sorted(map(told, lab.messages()), key=str) == sorted(map(told, normal), key=str)
    else:
        assert len(lab.messages()) == len(normal) == 2


def test_the_root_of_a_chord_applied_in_a_task(lab):
    """The body keeps the root that header tasks inherit from the task that applied the chord."""
    lab = lab()

    @lab.app.task(name="applier", shared=False)
    def applier():
        chord([lab.add.s(1, 1)], lab.total.s()).apply_async()

    root = applier.delay()
    lab.perform(lab.messages()[0])
    with lab.dying():
        (member,) = lab.messages()
        lab.perform(member)
    (found,) = lab.backend.repairs.survey.chords()
    lab.backend.repairs.repair(found)
    (body,) = lab.messages()
    assert (body.headers["root_id"], body.headers["parent_id"]) == (root.id, member.headers["id"])


@pytest.mark.parametrize("size", [1, 3, 33])
def test_mending_all(lab, size):
    """The look at all chords sends what is complete and unsent; the body gets all values in order."""
    lab = lab()
    result = lab.stuck(chord([lab.add.s(number, 1) for number in range(size)], lab.total.s()))
    assert lab.states() == ["stuck"]
    lab.app.tasks["celery.backend_cleanup"]()
    assert lab.messages() == []  # the daily cleanup sends nothing
    lab.backend.repairs.run()
    (body,) = lab.messages()
    assert body.payload[0][0] == list(range(1, size + 1))
    lab.perform(body)
    assert result.get(timeout=5) == sum(range(1, size + 1))
    assert lab.states() == []
    assert lab.states(settled=True) == ["sent"]
    lab.backend.repairs.run()
    assert lab.messages() == []


def test_an_attackers_chord(lab):
    """Two objects written by who may write make no worker send anything; a pickle among them never runs."""
    lab = lab()
    folder = lab.backend.chords.folder("x")
    body = json.dumps(lab.total.s().set(task_id="b")).encode()
    for text in (body, b"cos\nsystem\n(S'touch /tmp/ran'\ntR."):
        lab.backend.store.put(folder + "manifest", Manifest(("a",), None, text).dumps())
        lab.backend.store.put(folder + "0/0", pack_part((), b'["a","SUCCESS",1]'))
        time.sleep(2 * LEASE)
        lab.backend.mender.hand_on_all()
        (message,) = lab.messages()
        lab.perform(message)
        assert lab.messages() == []
        lab.app.tasks["celery.backend_cleanup"]()
        assert lab.messages() == []
    with pytest.raises(NotRepaired):
        lab.backend.repairs.repair(next(iter(lab.backend.repairs.survey.chords())))


def test_what_was_put_back(lab):
    """Recorded manifest and parts, and the claim deleted: the body's own result stands, and it does not run again."""
    lab = lab()
    result = chord([lab.add.s(1, 1)], lab.total.s()).apply_async()
    (member,) = lab.messages()
    with lab.dying():
        lab.perform(member)
    store = lab.backend.store
    recorded = {key: store.get(key).body for key in lab.names()}
    lab.backend.repairs.run()
    (body,) = lab.messages()
    lab.perform(body)
    store.delete_many(lab.names())
    for key, content in recorded.items():
        store.put(key, content)
    lab.backend.repairs.run()
    assert lab.messages() == []
    assert result.get(timeout=5) == 2
    assert lab.states(settled=True) == ["sent"]


def test_failed_members(lab):
    """A stuck chord with a failed member fails: the error reaches the body's result, and no body is sent."""
    lab = lab()
    result = lab.stuck(chord([lab.add.s(1, 1), lab.fail.s()], lab.total.s()))
    lab.backend.repairs.run()
    assert lab.messages() == []
    with pytest.raises(Exception, match="unlucky"):
        result.get(timeout=5)
    assert lab.states(settled=True) == ["failed"]


@pytest.mark.parametrize("failing", [False, True])
def test_results_without_parts(lab, failing):
    """Members whose result was stored by another hand (an older worker, an ignored task) deliver it."""
    lab = lab()
    result = chord([lab.add.s(number, 1) for number in range(3)], lab.total.s()).apply_async()
    members = lab.messages()
    lab.perform(members[0])
    for message in members[1:]:
        value = ValueError("unlucky") if failing else 5
        lab.backend.store_result(message.headers["id"], value, states.FAILURE if failing else states.SUCCESS)
    time.sleep(2 * LEASE)
    (found,) = lab.backend.repairs.survey.chords()
    assert (found.state, found.lost) == ("stuck", (1, 2))
    lab.backend.repairs.run()
    for body in lab.messages():
        lab.perform(body)
    if failing:
        with pytest.raises(Exception, match="unlucky"):
            result.get(timeout=5)
    else:
        assert result.get(timeout=5) == 11


@pytest.mark.parametrize("state", [states.REVOKED, states.RETRY, states.STARTED, "PROGRESS"])
def test_states_that_are_not_final(lab, state):
    """A revoked task may be running all the same, and delivers its part itself: nothing is delivered for it."""
    lab = lab()
    chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s()).apply_async()
    members = lab.messages()
    lab.perform(members[0])
    lab.backend.store_result(members[1].headers["id"], ValueError("later") if state == "RETRY" else {}, state)
    time.sleep(2 * LEASE)
    assert lab.states() == ["running"]
    lab.backend.repairs.run()
    assert lab.messages() == []
    lab.perform(members[1])
    assert len(lab.messages()) == 1


def test_nested_chord(lab):
    """An inner chord that is repaired reaches the outer one, whose member its body is."""
    lab = lab()
    inner = chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s())
    result = lab.stuck(chord([inner, lab.add.s(3, 3)], lab.total.s()))
    lab.backend.repairs.run()
    (inner_body,) = lab.messages()
    lab.perform(inner_body)
    (outer_body,) = lab.messages()
    lab.perform(outer_body)
    assert result.get(timeout=5) == 12


def test_dead_owner(lab, monkeypatch):
    """An owner that died between claiming and sending: the body is sent once the lease is over, not before."""
    lab = lab()
    lab.backend.chords.lease = 4
    chord([lab.add.s(1, 1)], lab.total.s()).apply_async()

    def die(*args, **kwargs):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(lab.backend.chord_sender, "decide", die)
        lab.perform(lab.messages()[0])
    assert lab.states() == ["claimed"]
    time.sleep(5.1)
    assert lab.states() == ["stuck"]
    lab.backend.repairs.run()
    assert len(lab.messages()) == 1


def test_owner_that_died_after_sending(lab, monkeypatch):
    """An owner that sent and died before it said so: where the body has a result by now, it is not sent again."""
    lab = lab()
    chord([lab.add.s(1, 1)], lab.total.s()).apply_async()
    decide = lab.backend.chord_sender.decide

    def send_and_die(*args, **kwargs):
        decide(*args, **kwargs)()
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(lab.backend.chord_sender, "decide", send_and_die)
        lab.perform(lab.messages()[0])
    lab.perform(lab.messages()[0])
    time.sleep(LEASE + 1.1)
    lab.backend.repairs.run()
    assert lab.messages() == []
    assert lab.states(settled=True) == ["sent"]


def test_two_repairs_at_once(lab):
    """Several parties that mend the same chords at the same time send each body once."""
    lab = lab()
    bodies = [chord([lab.add.s(number, 1) for number in range(3)], lab.total.s()).apply_async() for _ in range(4)]
    with lab.dying():
        for message in lab.messages():
            lab.perform(message)
    time.sleep(2 * LEASE)
    repairs = [threading.Thread(target=lab.backend.repairs.run) for _ in range(2)]
    for each in repairs:
        each.start()
    for each in repairs:
        each.join()
    sent = [message.headers["id"] for message in lab.messages()]
    assert sorted(sent) == sorted(body.id for body in bodies)
    assert lab.states() == []


def test_without_a_broker(lab, monkeypatch):
    """Who has no broker leaves the chord to others, unclaimed: it must not fail for that."""
    lab = lab()
    lab.stuck(chord([lab.add.s(1, 1)], lab.total.s()))
    with monkeypatch.context() as patch:
        patch.setattr(lab.app, "connection_for_write", lambda: lab.app.connection("redis://127.0.0.1:1/0"))
        (found,) = lab.backend.repairs.survey.chords()
        with pytest.raises(NotRepaired, match="sent from here"):
            lab.backend.repairs.repair(found)
        lab.backend.repairs.run()
    assert lab.states() == ["stuck"]
    lab.backend.repairs.run()
    assert len(lab.messages()) == 1


def test_fallback_chords_are_none_of_ours(seaweed, make_app):
    """Where chords are run by `chord_unlock`, the cleanup lists what has expired and stale uploads, no more."""
    with Proxy(seaweed) as proxy:
        app = make_app(proxy, result_backend_transport_options={"native_chords": False})
        app.tasks["celery.backend_cleanup"]()
        assert set(proxy.counts()) == {"LIST", "ListMultipartUploads"}


def test_tombstones_go(lab, monkeypatch):
    """What a decided chord leaves is removed by the cleanup after its time."""
    lab = lab()
    for _ in range(3):
        lab.stuck(chord([lab.add.s(1, 1)], lab.total.s()))
    lab.backend.repairs.run()
    assert len([key for key in lab.names() if key.endswith(("/claim", "/manifest"))]) == 6
    repairs = lab.backend.repairs
    repairs.survey.now = lambda: datetime.now(UTC) + KEPT + timedelta(seconds=5)
    repairs.run()
    assert lab.names() == []


# -- workers that mend


def test_clients_only_read(lab, seaweed, make_app):
    """Who waits for a stuck chord's body asks for the body's result, however long, and for nothing of its chord."""
    with Proxy(seaweed) as proxy:
        lab = Lab(make_app(proxy))
        result = lab.stuck(chord([lab.add.s(1, 1)], lab.total.s()))
        proxy.reset()
        with pytest.raises(TimeoutError):
            result.get(timeout=5 * LEASE)
        assert all("/celery-chords/" not in record.target and record.method == "GET" for record in proxy.records())
        assert proxy.counts()["LIST"] == 0


TASKS = """
import json, os
from celery import Celery
from celery.exceptions import Ignore
from celery_s3.chords import claim, mender

claim.SHORTEST_LEASE = mender.BY_HAND = 0.5
app = Celery("tasks")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))

@app.task(name="add", shared=False)
def add(x, y):
    return x + y

@app.task(name="ignored", shared=False)
def ignored():
    raise Ignore

@app.task(name="total", shared=False)
def total(numbers, path):
    with open(path, "a") as runs:
        runs.write(f"{sum(numbers)}\\n")
    return sum(numbers)
"""


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "lab_tasks.py"
    path.write_text(TASKS)
    return path


CONF = {"broker_connection_timeout": 0.1, "task_publish_retry": False}


@pytest.mark.parametrize("sealed", [True, False])
def test_a_worker_that_starts(seaweed, make_app, worker, eventually, tasks, tmp_path, sealed):
    """It mends what those before it left behind, where the bodies in the bucket are sealed; else it tells how many."""
    keys = {"seal_keys": KEY, "seal": "sign"} if sealed else {}
    app = make_app(seaweed, broker="filesystem", s3_backend_settings={**seaweed.settings(), **keys}, **CONF)
    lab, runs = Lab(app), tmp_path / "runs"
    result = lab.stuck(chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s(str(runs))))
    one = worker(app, tasks)
    if sealed:
        eventually(result.ready, 30)
        assert runs.read_text() == "6\n"
        eventually(lambda: "now sent" in one.log)
    else:
        eventually(lambda: "1 chords are stuck" in one.log, 30)
        assert not result.ready()
    assert "Traceback" not in one.log


def test_what_a_recycled_child_leaves(seaweed, make_app, worker, eventually, tasks, tmp_path):
    """The child that meets a dead owner's claim ends with its task: another one takes the claim over all the same."""
    app = make_app(seaweed, broker="filesystem", **CONF)
    lab, runs = Lab(app), tmp_path / "runs"
    result = chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s(str(runs))).apply_async()
    assert app.backend.chords.claim(result.parent.id).acquire() is None
    one = worker(app, tasks, args=["--max-tasks-per-child=1"])
    eventually(result.ready, 30)
    assert runs.read_text() == "6\n"
    assert "Traceback" not in one.log


def test_a_member_that_is_finished_by_hand(seaweed, make_app, worker, eventually, tasks, tmp_path):
    """It was ignored, so nothing is heard of it; its result comes from elsewhere, and the body soon after."""
    app = make_app(seaweed, broker="filesystem", **CONF)
    lab, runs = Lab(app), tmp_path / "runs"
    header = [lab.add.s(1, 1), app.signature("ignored")]
    result = chord(header, lab.total.s(str(runs)), app=app).apply_async()
    one = worker(app, tasks)
    eventually(lambda: "ignored" in one.log and result.parent[0].ready(), 30)
    app.backend.store_result(result.parent[1].id, 40, states.SUCCESS)
    eventually(result.ready, 30)
    assert runs.read_text() == "42\n"
    assert "Traceback" not in one.log


def test_beside_a_running_worker(seaweed, make_app, worker, tasks, tmp_path):
    """Repairs all the time while workers run chords: every body is sent once."""
    app = make_app(seaweed, broker="filesystem")
    lab, runs = Lab(app), tmp_path / "runs"
    lab.backend.chords.lease = 30.0
    worker(app, tasks)
    results = [chord([lab.add.s(n, 0) for n in range(40)], lab.total.s(str(runs))).apply_async() for _ in range(5)]
    while not all(result.ready() for result in results):
        lab.backend.repairs.run()
    assert [result.get(timeout=5) for result in results] == [780] * 5
    assert runs.read_text() == "780\n" * 5
