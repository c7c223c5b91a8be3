"""``typed+json`` for results and messages, with a real worker: alone, in chains and in chords."""

from __future__ import annotations

import os
from datetime import timedelta
from decimal import Decimal

import pytest
import typed_tasks
from celery import chain, chord, group
from logs import complaints
from typed_tasks import Order

from celery_s3 import typed

#: Seconds that an answer may take; only a hang takes them.
SOON = 30
TYPED = "typed+json"


@pytest.fixture
def work(seaweed, make_app, worker):
    """``tasks, one = work(**conf)``: the tasks of an app on SQS, and its worker with two processes."""

    def start(**conf):
        serializers = {"task_serializer": TYPED, "result_serializer": TYPED, "accept_content": ["json", TYPED]}
        app = make_app(seaweed, broker="sqs", **serializers | conf)
        path = os.pathsep.join([os.path.dirname(typed_tasks.__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
        return typed_tasks.register(app), worker(app, typed_tasks.__file__, env={"PYTHONPATH": path})

    return start


def test_typed_messages_and_results(work):
    """Arguments and results are of their types at the other end: alone, in a chain, a group, a chord, after a retry."""
    tasks, one = work()
    single = tasks.order.delay(1, Decimal("9.90"), tags=frozenset({"a"}))
    linked = chain(
        tasks.order.s(2, Decimal(10)), tasks.discount.s(Decimal(50)), tasks.discount.s(percent=Decimal(10))
    )()
    header = [tasks.order.s(number, Decimal(number)) for number in range(3)]
    grouped = group(header)()
    body = tasks.summary.s(since=timedelta(days=1))
    fanned = chord(header, body)()
    nested = chain(group(tasks.order.s(7, Decimal(7)), chord(header, tasks.order.si(8, Decimal(8)))), body.clone())()
    retried = tasks.flaky.delay(Order(4, Decimal(4)))

    assert single.get(timeout=SOON) == Order(1, Decimal("9.90"), tags=frozenset({"a"}))
    assert linked.get(timeout=SOON) == Order(2, Decimal("4.5"))
    assert grouped.get(timeout=SOON) == [Order(number, Decimal(number)) for number in range(3)]
    assert fanned.get(timeout=SOON) == {"total": Decimal(3), timedelta(days=1): (0, 1, 2)}
    assert nested.get(timeout=SOON) == {"total": Decimal(15), timedelta(days=1): (7, 8)}
    args, retries = retried.get(timeout=SOON)
    assert (list(args), retries) == ([Order(4, Decimal(4))], 1)
    assert complaints(one.log) == []


def test_typed_failures(work):
    """A failure comes back as its exception, with its typed arguments; a result of an unknown type is a failure too."""
    tasks, one = work()
    failed = tasks.fail.delay(Order(5, Decimal(5)))
    unknown = tasks.unregistered.delay()
    in_chord = chord([tasks.order.s(1, Decimal(1)), tasks.fail.s(2)], tasks.summary.s(since=timedelta(0)))()

    with pytest.raises(typed_tasks.OutOfStock) as caught:
        failed.get(timeout=SOON)
    assert caught.value.args == ("none left", Order(5, Decimal(5)), "Unregistered(x=1)")
    with pytest.raises(Exception, match=r"typed_tasks\.Unregistered.*not registered.*celery_s3\.typed\.register"):
        unknown.get(timeout=SOON)
    with pytest.raises(Exception, match="none left"):
        in_chord.get(timeout=SOON)
    assert "was not stored" not in one.log


def test_typed_results_alone(work):
    """As the serializer of results alone it needs nothing of the messages; numpy's arrays travel in both."""
    np = pytest.importorskip("numpy")
    tasks, _ = work(task_serializer="json")
    assert tasks.unregistered.app.send_task("order", (1,), {"total": Decimal(1)}).get(timeout=SOON) == Order(
        1, Decimal(1)
    )
    doubled = tasks.array.apply_async((np.ones((2, 2)),), serializer=TYPED)
    assert doubled.get(timeout=SOON).tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_worker_that_does_not_know_a_type(work):
    """A message of a type that the worker does not know is refused with a log line that tells why; it works on."""
    tasks, one = work()
    typed.register(typed_tasks.Unregistered, name="shop.unregistered")
    tasks.array.delay(typed_tasks.Unregistered(1))
    one.wait_for("no type is registered as 'shop.unregistered'", SOON)
    assert tasks.order.delay(1, Decimal(1)).get(timeout=SOON) == Order(1, Decimal(1))
