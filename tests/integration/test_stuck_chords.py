"""Stuck chords on SeaweedFS, mended by the backend: the same message, once, beside workers and each other."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group, states
from celery.app.trace import build_tracer
from celery.exceptions import TimeoutError
from celery.signals import worker_process_init, worker_ready

from celery_s3.chords import mending
from celery_s3.chords.repair import KEPT
from celery_s3.errors import NotRepaired
from celery_s3.expiry import clock
from devtools.proxy import Proxy

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
def test_the_same_message(lab, body, serializer):
    """A repaired chord sends, byte for byte, the message that its last member would have sent."""
    conf = dict.fromkeys(("task_serializer", "result_serializer", "event_serializer"), serializer)
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
def test_daily_cleanup(lab, size):
    """`celery.backend_cleanup` sends what is complete and unsent; the body gets all values in order."""
    lab = lab()
    result = lab.stuck(chord([lab.add.s(number, 1) for number in range(size)], lab.total.s()))
    assert lab.states() == ["stuck"]
    lab.app.tasks["celery.backend_cleanup"]()
    (body,) = lab.messages()
    assert body.payload[0][0] == list(range(1, size + 1))
    lab.perform(body)
    assert result.get(timeout=5) == sum(range(1, size + 1))
    assert lab.states() == []
    assert lab.states(settled=True) == ["sent"]
    lab.app.tasks["celery.backend_cleanup"]()
    assert lab.messages() == []


def test_failed_members(lab):
    """A stuck chord with a failed member fails: the error reaches the body's result, and no body is sent."""
    lab = lab()
    result = lab.stuck(chord([lab.add.s(1, 1), lab.fail.s()], lab.total.s()))
    lab.backend.cleanup()
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
    lab.backend.cleanup()
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
    lab.backend.cleanup()
    assert lab.messages() == []
    lab.perform(members[1])
    assert len(lab.messages()) == 1


def test_nested_chord(lab):
    """An inner chord that is repaired reaches the outer one, whose member its body is."""
    lab = lab()
    inner = chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s())
    result = lab.stuck(chord([inner, lab.add.s(3, 3)], lab.total.s()))
    lab.backend.cleanup()
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
    lab.backend.cleanup()
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
    lab.backend.cleanup()
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
    repairs = [threading.Thread(target=lab.backend.cleanup) for _ in range(2)]
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
        lab.backend.cleanup()
    assert lab.states() == ["stuck"]
    lab.backend.cleanup()
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
    lab.backend.cleanup()
    assert len([key for key in lab.names() if key.endswith(("/claim", "/manifest"))]) == 6
    repairs = lab.backend.repairs
    repairs.survey.now = lambda: datetime.now(UTC) + KEPT + timedelta(seconds=5)
    repairs.run()
    assert lab.names() == []


# -- who else mends


def test_who_waits_for_a_body(lab):
    """`get()` on the body of a stuck chord has it mended, and gets its result."""
    lab = lab()
    result = lab.stuck(chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s()))
    with lab.working():
        assert result.get(timeout=20) == 6


def test_who_waits_for_the_end_of_a_chain(lab):
    """So it is for what comes after the chord."""
    lab = lab()
    result = lab.stuck(chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s(), app=lab.app) | lab.add.s(1))
    with lab.working():
        assert result.get(timeout=20) == 7


def test_a_short_wait_lists_nothing(lab, seaweed, make_app):
    """A wait within the lease asks for the body's result, and for nothing of its chord."""
    with Proxy(seaweed) as proxy:
        lab = Lab(make_app(proxy))
        lab.backend.chords.lease = 30
        result = chord([lab.add.s(1, 1)], lab.total.s()).apply_async()
        proxy.reset()
        with pytest.raises(TimeoutError):
            result.get(timeout=0.5)
        assert all("/celery-chords/" not in record.target and record.method == "GET" for record in proxy.records())
        assert proxy.counts()["LIST"] == 0


@pytest.fixture
def timers(monkeypatch):
    """``timers(lab)``: what its backend wants to do later, from now on; not in a prefork worker's main process."""
    monkeypatch.setattr(mending, "prefork_parent", lambda: False)
    wanted = []

    def keep(lab):
        lab.backend.chords.later = lambda seconds, fn: wanted.append((seconds, fn))
        return wanted

    return keep


def test_a_worker_that_starts(lab, timers):
    """Some time after a worker has started, it mends; those that start within the hour leave it at that."""
    lab, other = lab(), lab()
    lab.stuck(chord([lab.add.s(1, 1)], lab.total.s()))
    timers(lab)
    wanted = timers(other)
    worker_process_init.send(sender="here")
    worker_ready.send(sender="here")
    assert len(wanted) == 2
    assert all(LEASE < seconds <= 2 * LEASE for seconds, _ in wanted)
    wanted[0][1]()
    assert len(lab.messages()) + len(other.messages()) == 1
    wanted[1][1]()
    assert not any(each.backend.mending.first_to_look() for each in (lab, other))


def test_which_process_mends_at_start(lab, timers, monkeypatch):
    """Neither the main process of a prefork worker, nor its second child, nor one that replaces another."""
    lab = lab()
    wanted = timers(lab)
    with monkeypatch.context() as patch:
        patch.setattr(mending.process.current_process(), "index", 1, raising=False)
        worker_process_init.send(sender="here")
    lab.backend.mending._started = False
    with monkeypatch.context() as patch:
        patch.setattr(mending, "prefork_parent", lambda: True)
        worker_ready.send(sender="here")
    worker_process_init.send(sender="here")
    assert wanted == []


def test_a_failing_look_harms_nobody(lab, timers, caplog):
    """A look in the background that fails is logged, whatever it is."""
    lab = lab()
    wanted = timers(lab)
    worker_process_init.send(sender="here")
    lab.backend.chords.store = None
    wanted[0][1]()
    assert "Chords could not be looked after" in caplog.text


TASKS = """
import json, os
from celery import Celery
from celery_s3.chords import claim

claim.SHORTEST_LEASE = 0.5
app = Celery("tasks")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))

@app.task(name="add", shared=False)
def add(x, y):
    return x + y

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


def test_a_real_worker_that_starts(seaweed, make_app, worker, eventually, tasks, tmp_path):
    """A prefork worker mends after its start what workers before it left behind."""
    conf = {"broker_connection_timeout": 0.1, "task_publish_retry": False}
    app = make_app(seaweed, broker="filesystem", **conf)
    lab, runs = Lab(app), tmp_path / "runs"
    result = lab.stuck(chord([lab.add.s(1, 1), lab.add.s(2, 2)], lab.total.s(str(runs))))
    one = worker(app, tasks)
    eventually(result.ready, 30)
    assert runs.read_text() == "6\n"
    eventually(lambda: "now sent" in one.log)
    assert "Traceback" not in one.log


def test_beside_a_running_worker(seaweed, make_app, worker, tasks, tmp_path):
    """Repairs all the time while workers run chords: every body is sent once."""
    app = make_app(seaweed, broker="filesystem")
    lab, runs = Lab(app), tmp_path / "runs"
    lab.backend.chords.lease = 30.0
    worker(app, tasks)
    results = [chord([lab.add.s(n, 0) for n in range(40)], lab.total.s(str(runs))).apply_async() for _ in range(5)]
    while not all(result.ready() for result in results):
        lab.backend.cleanup()
    assert [result.get(timeout=5) for result in results] == [780] * 5
    assert runs.read_text() == "780\n" * 5
