"""``celery s3 bench``: how fast the configured bucket is from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.costs.prices import Prices, bill, list_prices
from celery_s3.operate.bench import Bench, Plan, Row

from .command import command as s3_command
from .context import dry_run_option, json_option, terminated_like_interrupted, with_backend
from .output import data_size, print_json, print_table, printable, progress

__all__ = ["command"]

TITLES = ("OPERATION", "SAMPLES", "MEDIAN", "P90", "P99", "REQUESTS/S")
SHARES = (0.5, 0.9, 0.99)


@s3_command("bench", example="--count 50 --size 100000")
@click.option("--count", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Objects of each kind.")
@click.option("--size", type=click.IntRange(0, 2**26), default=1024, show_default=True, help="Bytes of each.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Requests at the same time; getting many takes the setting `concurrency`.",
)
@dry_run_option
@json_option
@with_backend
def command(backend: S3Backend, count: int, size: int, concurrency: int, dry_run: bool, as_json: bool) -> None:
    """Measure put, conditional put, get and list.

    On the configured bucket, from this machine, through the client and the retries that workers use, under a prefix of
    its own that is removed in the end, also when you interrupt it: what is measured by then is shown. It says
    beforehand what that costs.

    A sample of `get many` is all objects, of `list` one listing of them. The first request, which connects, is not
    measured. Needs s3:PutObject, s3:GetObject, s3:DeleteObject, and s3:ListBucket for the listing: where only that is
    denied, the rest is measured, and the exit code is 1.
    """
    prices = list_prices(backend.settings.bucket)
    plan = Plan(count, size, concurrency, backend.settings.concurrency)
    total = sum(plan.requests.values())
    click.echo(
        f"{total:,} requests on {backend.as_uri()}: ${plan.dollars(prices):.4f} at {_list_price(prices)}.", err=True
    )
    if dry_run:
        if as_json:
            print_json({"plan": asdict(plan), "requests": plan.requests, "dollars": plan.dollars(prices)})
        return
    rows: list[Row] = []
    with progress("Measuring", plan.samples) as moved:
        bench = Bench(backend.store, backend.tally, backend.layout, plan, moved=moved)
        interrupted = _measure(bench, rows)
    dollars = sum(item.dollars for item in bill(bench.spent, prices))
    if as_json:
        told = {"plan": asdict(plan), "rows": [_record(row) for row in rows], "dollars": dollars}
        print_json(told | {"complete": interrupted is None})
    elif rows:
        print_table(TITLES, [_row(row) for row in rows])
        click.echo(f"{data_size(size)} each. It cost ${dollars:.4f} at {_list_price(prices)}; everything is removed.")
    if interrupted is not None:
        raise interrupted
    _fail_if_denied(rows)


def _measure(bench: Bench, rows: list[Row]) -> KeyboardInterrupt | None:
    """Add the rows as they come; what was raised where somebody had enough of it."""
    try:
        with terminated_like_interrupted():
            rows.extend(bench.rows())
    except KeyboardInterrupt as exc:
        return exc
    except BaseException as exc:
        for note in getattr(exc, "__notes__", ()):
            click.echo(printable(note), err=True)
        raise
    return None


def _fail_if_denied(rows: Sequence[Row]) -> None:
    denied = [row for row in rows if row.denied]
    for row in denied:
        click.echo(f"{row.operation}: {row.denied}.", err=True)
    if denied:
        raise SystemExit(1)


def _list_price(prices: Prices) -> str:
    return f"the list price of {prices.title}, {prices.date}"


def _row(row: Row) -> tuple[str, ...]:
    if row.denied:
        return row.operation, row.denied, "", "", "", ""
    times = (f"{1000 * row.percentile(share):.1f} ms" for share in SHARES)
    return row.operation, f"{len(row.seconds)}", *times, f"{row.rate:,.0f}"


def _record(row: Row) -> dict[str, Any]:
    measured = not row.denied
    return {
        "operation": row.operation,
        "samples": len(row.seconds),
        "requests": row.requests,
        "per_second": row.rate,
        "denied": row.denied or None,
        **{f"p{share * 100:.0f}": row.percentile(share) if measured else None for share in SHARES},
    }
