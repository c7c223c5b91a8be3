"""``celery s3 ls``: which results there are, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.operate.inventory import Found, Inventory
from celery_s3.store.extent import Extent

from .command import command as s3_command
from .context import json_option, with_backend
from .output import counted, data_size, duration, print_json, print_table
from .query import filter_of, filter_options, inventory_of, no_such_state, place, yes_option

__all__ = ["command"]


@s3_command("ls", example="--state FAILURE --since 1d")
@filter_options
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@yes_option
@json_option
@with_backend
def command(backend: S3Backend, limit: int, yes: bool, as_json: bool, **wanted: Any) -> None:
    """List results, newest first.

    With id, state, task, age and size as stored, to which that of its files is added. No result is decoded. State
    and task are in the objects' metadata, where celery-s3 puts them: results that another backend wrote have none,
    and fit no --state and no --task. An expired result is there until a lifecycle rule or `celery s3 sweep` deletes
    it; to Celery it is missing.

    S3 lists by key and not by time, so the whole prefix is listed: a request for each 1,000 results that are
    stored; one for each result that is shown, or that --state and --task must look at; and one for each that has
    files. More than 1,000 requests are announced and asked about.

    Needs s3:ListBucket and s3:GetObject.
    """
    inventory = inventory_of(backend, yes=yes)
    wanted_ones = filter_of(**wanted)
    found = inventory.newest(wanted_ones, limit)
    files, now = inventory.files_of_each(found), datetime.now(UTC)
    if inventory.unreadable:
        click.echo(f"{len(inventory.unreadable):,} could not be read, as {inventory.unreadable[0]}", err=True)
    if as_json:
        print_json([_record(one, files.get(one.id), now) for one in found])
        return
    if found:
        print_table(("ID", "STATE", "TASK", "AGE", "SIZE"), [_row(one, files.get(one.id), now) for one in found])
    hint = "" if found else no_such_state(backend, wanted_ones)
    click.echo(hint or _summary(found, inventory, place(backend)), err=True)


def _record(found: Found, files: Extent | None, now: datetime) -> dict[str, Any]:
    entry = found.entry
    return {
        "id": found.id,
        "state": found.state,
        "task": found.task,
        "stored": entry.modified,
        "age": round(_age(found, now)),
        "expires": found.expires,
        "size": entry.size,
        "files": {"count": files.count, "bytes": files.size} if files else None,
        "storage_class": entry.storage_class or None,
        "key": entry.key,
    }


def _row(found: Found, files: Extent | None, now: datetime) -> tuple[str, ...]:
    age = duration(_age(found, now))
    state = found.state or "?"
    if found.expires is not None and found.expires <= now:
        state += " (expired)"
    size = data_size(found.entry.size + (files.size if files else 0))
    more = f" ({counted(files.count, 'file')})" if files else ""
    return found.id, state, found.task or "?", age, size + more


def _age(found: Found, now: datetime) -> float:
    # the server's clock may be ahead
    return max(0.0, (now - found.entry.modified).total_seconds())


def _summary(found: Sequence[Found], inventory: Inventory, where: str) -> str:
    stored = inventory.listed
    return f"{len(found):,} shown of {stored.count:,} results in {where}, {data_size(stored.size)} in all."
