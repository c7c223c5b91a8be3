"""What is in the bucket, in numbers: by kind and age from listings, by state and task from results taken at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

from celery_s3.keys import KINDS, RESULTS
from celery_s3.store.extent import Extent

from .inventory import Found, Inventory

__all__ = ["AGES", "Stats", "gather"]

#: The ages that results are told apart by: seconds up to which each goes.
AGES = {"1 h": 3600.0, "1 d": 86_400.0, "7 d": 604_800.0, "30 d": 2_592_000.0, "older": float("inf")}
_OLDEST = "older"


@dataclass(slots=True)
class Stats:
    """What there is.

    Attributes:
        kinds: objects of each kind that there is any of.
        ages: results by their age, by the names of :data:`AGES`.
        states, tasks: of the results that were looked at; ``?`` where another writer left none.
        looked: how many these are.
    """

    kinds: dict[str, Extent] = field(default_factory=dict)
    ages: dict[str, Extent] = field(default_factory=lambda: {name: Extent() for name in AGES})
    states: dict[str, Extent] = field(default_factory=dict)
    tasks: dict[str, Extent] = field(default_factory=dict)
    looked: int = 0


def gather(inventory: Inventory, look: int, now: datetime | None = None) -> Stats:
    """List all that is this deployment's, and look at some results; their share is that of all, roughly.

    Arguments:
        look: how many results are looked at, a request each.

    Raises:
        StoreError: the bucket cannot be listed or read.
    """
    now = now or datetime.now(UTC)
    stats, sample, choose = Stats(), list[Found](), random.Random(0)  # noqa: S311 (a sample)
    for kind in KINDS:
        for entry in inventory.pages(inventory.layout.prefix(kind)):
            key = inventory.layout.parse(entry.key)
            if key is None or key.kind is not kind:
                continue
            extent = stats.kinds.setdefault(kind.name, Extent())
            extent.add(entry)
            if kind is RESULTS:
                stats.ages[_age((now - entry.modified).total_seconds())].add(entry)
                place = extent.count - 1 if extent.count <= look else choose.randrange(extent.count)
                if place < look:
                    sample[place : place + 1] = [Found(key.id, entry)]
    for found in inventory.known(found.id for found in sample):
        stats.looked += 1
        stats.states.setdefault(found.state or "?", Extent()).add(found.entry)
        stats.tasks.setdefault(found.task or "?", Extent()).add(found.entry)
    return stats


def _age(seconds: float) -> str:
    return next(name for name, limit in AGES.items() if seconds < limit or name == _OLDEST)
