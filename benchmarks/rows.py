"""The rows of the table: what is measured, how often, and the goals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CONTENDERS", "DELAY", "FULL", "QUICK", "ROWS", "TOLD", "Effort", "Goal", "Row"]

#: Key and name of each backend, in the order of the table's columns.
CONTENDERS = {"celery": "Celery's `s3`", "redis": "Celery's Redis", "ours": "celery-s3"}

#: The waits that a broker tells, by the beginning of a row's key: which broker, and the backend's `notices`.
TOLD = {
    "redis": ("redis", "auto"),
    "ids": ("redis", "ids"),
    "rabbitmq": ("rabbitmq", "auto"),
    "sqs": ("sqs", "on"),
}

#: Seconds that the proxy holds back every answer of the result store, where a row says so.
DELAY = 0.02


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit for the median of a metric; ``most`` unless a larger value is better."""

    metric: str
    unit: str
    limit: float
    larger_is_better: bool = False

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.larger_is_better else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work. The first goal's metric is the one that the chart shows.

    ``title`` names fields of :class:`Effort`; ``requests`` is the most that one unit of work may make, ``of_redis``
    the share of Redis' median that the first goal's metric has to reach; ``None`` where there is no such goal.
    """

    key: str
    title: str
    goals: tuple[Goal, ...]
    requests: float | None = None
    of_redis: float | None = None


ROWS = (
    Row("store", "Store a result: CPU in the client", (Goal("cpu", "ms", 0.25),), requests=1),
    Row("fetch", "Fetch a result: CPU in the client", (Goal("cpu", "ms", 0.29),), requests=1),
    Row("group", "`GroupResult.get()`, {group} finished, 20 ms", (Goal("wall", "s", 0.3),), requests=500),
    Row("wait-0.05", "Task of 0.05 s, 20 ms: `get()` returns after its end", (Goal("late", "ms", 45),)),
    Row("wait-1.3", "Task of 1.3 s, 20 ms", (Goal("late", "ms", 80),), requests=20),
    Row("wait-7.7", "Task of 7.7 s, 20 ms", (Goal("late", "ms", 200),), requests=30),
    Row("redis-0.05", "The same task, told by Redis, the result along", (Goal("late", "ms", 1),), requests=2),
    Row("redis-1.3", "Task of 1.3 s, the same", (Goal("late", "ms", 1),), requests=3),
    Row("redis-7.7", "Task of 7.7 s, the same", (Goal("late", "ms", 1),), requests=6),
    Row("ids-1.3", "Task of 1.3 s, told by Redis, the result fetched", (Goal("late", "ms", 27),), requests=3),
    Row("rabbitmq-0.05", "Task of 0.05 s, told by RabbitMQ", (Goal("late", "ms", 27),), requests=2),
    Row("rabbitmq-1.3", "Task of 1.3 s, the same", (Goal("late", "ms", 27),), requests=3),
    Row("rabbitmq-7.7", "Task of 7.7 s, the same", (Goal("late", "ms", 27),), requests=6),
    Row("sqs-1.3", "Task of 1.3 s, told by moto's SQS", (Goal("late", "ms", 50),), requests=3),
    Row("tasks", "{tasks} trivial tasks, 2 processes, 20 ms", (Goal("rate", "tasks/s", 85, larger_is_better=True),)),
    Row(
        "late-tasks",
        "{late_tasks} trivial tasks with `acks_late`, the same",
        (Goal("rate", "tasks/s", 500, larger_is_better=True),),
        of_redis=0.6,
    ),
    Row(
        "chord-200",
        "Chord of 200, 2 processes, 20 ms: last header task → body; whole",
        (Goal("late", "ms", 150), Goal("wall", "s", 6)),
        requests=1200,
    ),
    Row(
        "chord-1000",
        "Chord of 1,000",
        (Goal("late", "ms", 250), Goal("wall", "s", 30)),
        requests=6000,
    ),
    Row(
        "chord-10000",
        "Chord of 10,000; memory of the process that sends the body",
        (Goal("late", "ms", 1000), Goal("wall", "s", 300), Goal("memory", "MB", 150)),
        requests=60000,
    ),
    Row(
        "late-chord-200",
        "Chord of 200 with `acks_late`: last header task → body; whole",
        (Goal("late", "ms", 200), Goal("wall", "s", 1.2)),
        requests=1200,
    ),
    Row(
        "late-chord-1000",
        "Chord of 1,000 with `acks_late`",
        (Goal("late", "ms", 200), Goal("wall", "s", 5.5)),
        requests=6000,
    ),
    Row("first", "Import and first result stored", (Goal("wall", "s", 0.1), Goal("memory", "MB", 8))),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How often everything is done.

    Attributes:
        rounds: fresh client processes per contender that store, and that fetch.
        batches, batch: samples in each of them, and results in each sample.
        group: members of the group.
        groups: how often it is fetched, by contender (Celery's `s3` backend takes half a minute).
        waits: how many tasks of each length (seconds) are waited for.
        tasks, late_tasks: how many tasks the worker runs, acknowledged early and late.
        bursts: how often it does.
        chords: how many chords of each size run, by contender (Celery's `s3` backend reads every member again and
            again, one by one).
        late_chords: the same, of tasks that are acknowledged late.
        firsts: fresh processes per contender that store their first result.
    """

    rounds: int
    batches: int
    batch: int
    group: int
    groups: Mapping[str, int]
    waits: Mapping[float, int]
    tasks: int
    late_tasks: int
    bursts: int
    chords: Mapping[int, Mapping[str, int]]
    late_chords: Mapping[int, Mapping[str, int]]
    firsts: int


FULL = Effort(
    rounds=3,
    batches=5,
    batch=50,
    group=500,
    groups={"celery": 1, "redis": 7, "ours": 7},
    waits={0.05: 24, 1.3: 20, 7.7: 7},
    tasks=300,
    late_tasks=600,
    bursts=3,
    chords={
        200: {"celery": 3, "redis": 5, "ours": 5},
        1000: {"redis": 3, "ours": 3},
        10000: {"redis": 1, "ours": 1},
    },
    late_chords={200: {"celery": 1, "redis": 5, "ours": 5}, 1000: {"redis": 3, "ours": 3}},
    firsts=7,
)

#: Too few samples to judge the goals by: for a look while one works on something.
QUICK = Effort(
    rounds=1,
    batches=3,
    batch=30,
    group=100,
    groups={"celery": 1, "redis": 3, "ours": 3},
    waits={0.05: 8, 1.3: 3, 7.7: 1},
    tasks=100,
    late_tasks=300,
    bursts=1,
    chords={200: {"celery": 1, "redis": 1, "ours": 2}},
    late_chords={200: {"redis": 1, "ours": 2}},
    firsts=2,
)
