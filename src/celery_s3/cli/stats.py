"""``celery s3 stats``: what is in the bucket, in numbers and bars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.costs.prices import list_prices, storage_cost
from celery_s3.operate.stats import AGES, Stats, gather
from celery_s3.store.extent import Extent

from .command import command as s3_command
from .context import json_option, with_backend
from .output import counted, data_size, print_json, print_table
from .query import inventory_of, place, price, yes_option

__all__ = ["command"]

#: Columns of the longest bar, and rows of a table of tasks.
BAR, ROWS = 24, 20


@s3_command("stats", example="--look 500")
@click.option(
    "--look",
    type=click.IntRange(0, 1_000_000),
    default=100,
    show_default=True,
    help="How many results are looked at for state and task, a request each.",
)
@yes_option
@json_option
@with_backend
def command(backend: S3Backend, look: int, yes: bool, as_json: bool) -> None:
    """Count objects and bytes by kind, age, state and task.

    Kinds and ages come from listings and are exact: a request for each 1,000 objects. States and tasks are in no
    listing: they are told of so many results, taken at random, as a share of these. More than 1,000 requests are
    announced and asked about.

    Needs s3:ListBucket, and s3:GetObject for states and tasks.
    """
    asked = Counter(GET=look)
    click.echo(f"A request for each 1,000 objects, and up to {price(asked, backend.settings)} for states.", err=True)
    inventory = inventory_of(backend, yes=yes)
    stats = gather(inventory, look)
    spent = inventory.budget.spent
    if as_json:
        print_json(_record(stats) | {"requests": spent})
        return
    _chart("KIND", stats.kinds)
    _chart("RESULTS UP TO", {name: extent for name, extent in stats.ages.items() if extent.count})
    _chart("STATE", stats.states, of=stats.looked)
    _chart("TASK", stats.tasks, of=stats.looked)
    total = sum(extent.size for extent in stats.kinds.values())
    objects = counted(sum(extent.count for extent in stats.kinds.values()), "object")
    cost = ""
    if backend.settings.on_aws:
        cost = f" (${storage_cost(total, 30, list_prices(backend.settings.bucket)):.4f} a month)"
    took = price(spent, backend.settings)
    click.echo(f"{objects}, {data_size(total)}{cost} in {place(backend)}. It took {took}.")


def _chart(title: str, extents: Mapping[str, Extent], *, of: int = 0) -> None:
    """A table with bars, the longest for the most bytes; with shares of how many were looked at."""
    if not extents:
        return
    largest = max(extent.size for extent in extents.values()) or 1
    shown = extents if title.startswith("RESULTS") else dict(sorted(extents.items(), key=lambda one: -one[1].size))
    rows = [
        (
            name,
            f"{extent.count / of:.0%}" if of else f"{extent.count:,}",
            data_size(extent.size / (extent.count if of else 1)),
            "█" * round(BAR * extent.size / largest),
        )
        for name, extent in list(shown.items())[:ROWS]
    ]
    print_table((title, f"OF {of}" if of else "OBJECTS", "EACH" if of else "SIZE", ""), rows)
    if len(shown) > ROWS:
        click.echo(f"… and {len(shown) - ROWS:,} more: --json lists all.")
    click.echo()


def _record(stats: Stats) -> dict[str, Any]:
    def told(extents: Mapping[str, Extent]) -> dict[str, Any]:
        return {name: {"count": extent.count, "bytes": extent.size} for name, extent in extents.items()}

    ages = [
        {"up_to": None if AGES[name] == float("inf") else AGES[name], "count": extent.count, "bytes": extent.size}
        for name, extent in stats.ages.items()
    ]
    looked = {"results": stats.looked, "states": told(stats.states), "tasks": told(stats.tasks)}
    return {"kinds": told(stats.kinds), "ages": ages, "looked_at": looked}
