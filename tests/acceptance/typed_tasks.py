"""The types and tasks of the tests of typed values; ``register(app)`` gives the tasks to a worker's app or a test's."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any

from celery import Celery, Task

from celery_s3 import typed


@typed.register(name="acceptance.order")
@dataclass(frozen=True, slots=True)
class Order:
    number: int
    total: Decimal
    placed: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    tags: frozenset[str] = frozenset()


@dataclass
class Unregistered:
    x: int


class OutOfStock(Exception):
    """Carries what no JSON has."""


def register(app: Celery) -> SimpleNamespace:
    """The tasks, by name."""
    task = partial(app.task, shared=False)

    @task(name="order")
    def order(number: int, total: Decimal, **fields: Any) -> Order:
        assert type(total) is Decimal
        return Order(number, total, **fields)

    @task(name="discount")
    def discount(order: Order, percent: Decimal) -> Order:
        assert type(order) is Order
        return replace(order, total=order.total * (100 - percent) / 100)

    @task(name="summary")
    def summary(orders: list[Order], since: timedelta) -> dict[Any, Any]:
        assert {type(order) for order in orders} == {Order}
        return {"total": sum(order.total for order in orders), since: tuple(order.number for order in orders)}

    @task(name="fail")
    def fail(what: Any) -> None:
        raise OutOfStock("none left", what, Unregistered(1))

    @task(name="unregistered")
    def unregistered() -> Unregistered:
        return Unregistered(1)

    @task(name="flaky", bind=True, max_retries=1)
    def flaky(self: Task, order: Order) -> Any:
        if self.request.retries:
            return self.request.args, self.request.retries
        raise self.retry(countdown=0)

    @task(name="array")
    def array(matrix: Any) -> Any:
        return matrix * 2

    return SimpleNamespace(**{name: one for name, one in locals().items() if hasattr(one, "apply_async")})


if CONF := os.environ.get("CELERY_S3_TEST_CONF"):
    app = Celery("typed_tasks")
    app.conf.update(json.loads(CONF))
    register(app)
