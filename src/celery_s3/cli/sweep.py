"""``celery s3 sweep``: delete what has expired."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.costs.prices import list_prices, storage_cost
from celery_s3.expiry.sweep import Sweep, Swept
from celery_s3.interruptions import brief
from celery_s3.operate.init import keeps_versions
from celery_s3.store.clients.control import Control
from celery_s3.store.counting import difference, requests_in

from .command import command as s3_command
from .command import with_program
from .context import dry_run_option, json_option, with_backend
from .output import counted, data_size, print_json, print_table, progress
from .query import confirm, expensive, price, yes_option

__all__ = ["command"]

_VERSIONED = (
    "The bucket keeps versions: what was deleted is there as an older version, and billed, until a rule removes it"
    " (`celery -A … s3 init` makes one)."
)


@s3_command("sweep", example="--dry-run")
@click.option("--limit", type=click.IntRange(min=1), help="Stop once so many objects are deleted.")
@click.option(
    "--thorough",
    is_flag=True,
    help="Look at every result, also at young ones: some may have a shorter term of their own.",
)
@click.option("--adopt", is_flag=True, help="Delete also what Celery's own backend or celery-s3 1.0.1 has written.")
@yes_option
@dry_run_option
@json_option
@with_backend
def command(
    backend: S3Backend, limit: int | None, thorough: bool, adopt: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Delete what has expired, and nothing else.

    Results and saved groups after `result_expires`, failures after `result_failure_expires`, results with a term of
    their own after that, what chords have left, messages of the claim check, the parts of uploads that nobody has
    completed for a day, and where notices go by SQS the queues that killed processes have left. The server's clock
    decides. What the bucket's lifecycle rules delete (`celery s3 init`) needs
    no sweep, and costs nothing.

    What another backend has written under the same keys stays, however old, and is counted: --adopt deletes it, and
    asks before.

    It may run beside workers and beside another sweep: each object is looked at right before it is deleted, and what
    is written meanwhile stays. Interrupted, it is simply run again.

    Costs a LIST for each 1,000 objects and a GET for each one that may have expired. Needs s3:ListBucket,
    s3:GetObject and s3:DeleteObject; for uploads s3:ListBucketMultipartUploads and s3:AbortMultipartUpload.
    """
    before = backend.tally.snapshot()
    sweep = backend.sweep(dry_run=dry_run, thorough=thorough, adopt=adopt)
    suspects, requests = sweep.forecast()
    if adopt and suspects and not (dry_run or yes):
        confirm(f"Delete up to {counted(suspects, 'object')}, what another backend has written among them?")
    if expensive(requests):
        click.echo(f"To look at {suspects:,} objects takes about {price(requests, backend.settings)}.", err=True)
    try:
        with progress("Looking" if dry_run else "Sweeping", suspects) as advance:
            done = sweep.run(limit=limit, looked=advance)
    except KeyboardInterrupt:
        click.echo(f"{_summary(sweep.done, dry_run)} Run it again for the rest.", err=True)
        raise
    queues = _sweep_queues(backend, dry_run)
    _print(backend, sweep, done, queues, requests_in(difference(backend.tally.snapshot(), before)), as_json)


def _sweep_queues(backend: S3Backend, dry_run: bool) -> int | None:
    """How many queues for notices were left behind; ``None`` where they could not be looked at."""
    try:
        return backend.notices.sweep(dry_run=dry_run)
    except Exception as exc:  # noqa: BLE001 - whatever the broker's client raises
        click.echo(f"The queues of those who wait could not be looked at: {brief(exc)}", err=True)
        return None


def _print(
    backend: S3Backend, sweep: Sweep, done: Swept, queues: int | None, spent: Counter[str], as_json: bool
) -> None:
    versioned = keeps_versions(Control(backend.settings))
    if as_json:
        print_json(_record(backend, sweep, done) | {"queues": queues, "requests": spent, "versioned": versioned})
        return
    if queues:
        click.echo(f"{'Would delete' if sweep.dry_run else 'Deleted'} {counted(queues, 'queue')} for notices.")
    if done.deleted:
        rows = [(kind, f"{part.count:,}", data_size(part.size)) for kind, part in done.deleted.items()]
        print_table(("KIND", "OBJECTS", "SIZE"), rows)
    saved = _saved(backend, done)
    worth = f" That saves ${saved:.4f} of storage a month." if saved and saved >= 0.0001 else ""
    click.echo(f"{_summary(done, sweep.dry_run)}{worth} It took {price(spent, backend.settings)}.")
    if done.foreign.count:
        left = f"{counted(done.foreign.count, 'object')}, {data_size(done.foreign.size)}"
        click.echo(
            f"Left alone: {left} that another backend has written and that are as old: --adopt deletes them too."
        )
    if not done.complete:
        click.echo("There may be more: run it again for the rest.")
    if versioned and done.count:
        click.echo(with_program(_VERSIONED))


def _summary(done: Swept, dry_run: bool) -> str:
    objects, uploads = counted(done.count, "object"), counted(done.aborted, "unfinished upload")
    aborted = f" {'Would abort' if dry_run else 'Aborted'} {uploads}." if done.aborted else ""
    unseen = f" Unfinished uploads could not be looked at: {done.unseen}." if done.unseen else ""
    return f"{'Would delete' if dry_run else 'Deleted'} {objects}, {data_size(done.size)}.{aborted}{unseen}"


def _record(backend: S3Backend, sweep: Sweep, done: Swept) -> dict[str, Any]:
    return {
        "deleted": {kind: {"count": part.count, "bytes": part.size} for kind, part in done.deleted.items()},
        "count": done.count,
        "bytes": done.size,
        "looked": done.looked,
        "foreign": {"count": done.foreign.count, "bytes": done.foreign.size},
        "uploads": None if done.unseen else done.aborted,
        "complete": done.complete,
        "dry_run": sweep.dry_run,
        "saved_per_month": _saved(backend, done),
    }


def _saved(backend: S3Backend, done: Swept) -> float | None:
    """Dollars, where they are Amazon's."""
    if not backend.settings.on_aws:
        return None
    return storage_cost(done.size, 30, list_prices(backend.settings.bucket))
