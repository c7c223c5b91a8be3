"""``celery s3 forget``: delete results, by id or by what they are."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.errors import ObjectMissing, Untrusted
from celery_s3.operate.inventory import Filter, Found, Inventory
from celery_s3.store.api import PAGE, batches
from celery_s3.store.counting import pages
from celery_s3.store.extent import Extent

from .command import command as s3_command
from .context import dry_run_option, json_option, with_backend
from .lookup import keys_of
from .output import counted, data_size, print_json, print_table, progress
from .query import confirm, expensive, filter_of, filter_options, inventory_of, no_such_state, price, yes_option

__all__ = ["command"]

#: Ids of which it is told what each is.
SHOWN = 20


@s3_command("forget", example="--state FAILURE --older-than 30d")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@yes_option
@dry_run_option
@json_option
@with_backend
def command(backend: S3Backend, ids: Sequence[str], yes: bool, dry_run: bool, as_json: bool, **wanted: Any) -> None:
    """Delete results.

    Those with these IDs (- reads them from standard input, one a line), or all that fit every option given; with the
    files that their tasks have uploaded. With an ID goes the saved group of that id; its members' results stay. What is
    not there counts as forgotten.

    It asks first, and tells how many there are; of IDs, what each of them is. With options, what is written while it
    runs stays. Interrupted, it may simply be run again.

    What a chord keeps under its own keys is not touched. Do not forget the members of one in flight: it is mended from
    their results if it gets stuck. In a versioned bucket the older versions stay, and stay billed.

    Needs s3:DeleteObject and s3:GetObject; with options, and where there are files, also s3:ListBucket.
    """
    filters = filter_of(**wanted)
    if bool(ids) == (filters != Filter()):
        raise click.UsageError("Name either IDs or options that say which results are meant.")
    if ids:
        _print(_forget_ids(backend, list(_each(ids)), yes=yes, dry_run=dry_run, quiet=as_json), dry_run, as_json)
    else:
        _print(_forget_fitting(backend, filters, yes=yes, dry_run=dry_run), dry_run, as_json)


def _each(ids: Iterable[str]) -> Iterable[str]:
    named: dict[str, None] = {}
    for id in ids:
        named |= dict.fromkeys((line.rstrip("\r\n") for line in sys.stdin) if id == "-" else [id])
    named.pop("", None)
    return named


# -- by id


def _forget_ids(backend: S3Backend, ids: Sequence[str], *, yes: bool, dry_run: bool, quiet: bool) -> dict[str, Any]:
    # The saved group of that id too: one DeleteObjects takes 1,000 keys, whatever they are.
    doomed = [key for id in ids for key in keys_of(backend, id)]
    inventory = inventory_of(backend, yes=yes)
    results = inventory.known(ids)
    groups = _groups(backend, set(ids) - {found.id for found in results}, inventory)
    missing = [id for id in ids if id not in groups | {found.id for found in results}]
    if not quiet:
        _tell(results, groups, missing)
    if len(missing) < len(ids) and not dry_run:
        if not yes:
            requests = Counter(DELETE_OBJECTS=pages(len(doomed)))
            confirm(f"Forget {_what(len(results), len(groups))}?{_price(requests, backend)}")
        inventory.budget.agreed()
        # Files first: the result tells that there are files, so whoever is interrupted can run it again.
        doomed = inventory.files_with(results) + doomed
        with progress("Forgetting", len(doomed)) as advance:
            for batch in batches(doomed, PAGE):
                backend.store.delete_many(batch)
                advance(len(batch))
    size = sum(found.entry.size for found in results)
    told = {"results": len(results), "groups": len(groups), "missing": missing}
    return {**told, "bytes": size, "requests": inventory.budget.spent}


def _groups(backend: S3Backend, ids: Iterable[str], inventory: Inventory) -> set[str]:
    """Those of these ids that have a saved group; a request each."""

    def is_one(id: str) -> bool:
        inventory.budget.reserve("GET")
        try:
            backend.store.get(backend.layout.group_key(id), length=1)
        except ObjectMissing:
            return False
        except Untrusted:
            pass
        return True

    wanted = sorted(ids)
    return {id for id, found in zip(wanted, backend.pool.map(is_one, wanted), strict=True) if found}


def _tell(results: Sequence[Found], groups: Iterable[str], missing: Sequence[str]) -> None:
    """What stands under the ids, unless these are many."""
    rows = [(one.id, one.state or "?", one.task or "?", data_size(one.entry.size)) for one in results]
    rows += [(id, "saved group", "", "") for id in sorted(groups)] + [(id, "nothing", "", "") for id in missing]
    if 0 < len(rows) <= SHOWN:
        print_table(("ID", "STATE", "TASK", "SIZE"), rows, err=True)


def _what(results: int, groups: int) -> str:
    parts = [counted(number, noun) for number, noun in ((results, "result"), (groups, "saved group")) if number]
    return " and ".join(parts) or "0 results"


# -- by what they are


def _forget_fitting(backend: S3Backend, wanted: Filter, *, yes: bool, dry_run: bool) -> dict[str, Any]:
    inventory = inventory_of(backend, yes=yes)
    extent = inventory.extent(wanted)
    if extent.count and not yes:
        _ask(backend, inventory, wanted, extent, dry_run=dry_run)
    inventory.budget.agreed()
    wanted = wanted.until(extent.newest)
    gone = extent if dry_run and not wanted.needs_metadata else Extent()
    if extent.count and gone is not extent:
        gone = _carry_out(inventory, wanted, extent, dry_run=dry_run)
    if not gone.count and (hint := no_such_state(backend, wanted)):
        click.echo(hint, err=True)
    told = {"results": gone.count, "groups": 0, "missing": []}
    return {**told, "bytes": gone.size, "requests": inventory.budget.spent}


def _ask(backend: S3Backend, inventory: Inventory, wanted: Filter, extent: Extent, *, dry_run: bool) -> None:
    requests = _to_come(inventory, wanted, extent, dry_run=dry_run)
    cost = _price(requests, backend)
    if dry_run:
        if wanted.needs_metadata and cost:
            confirm(f"Look at {counted(extent.count, 'result')}?{cost}")
    elif wanted.needs_metadata:
        confirm(f"Look at {counted(extent.count, 'result')} and forget those that fit?{cost}")
    else:
        confirm(f"Forget {counted(extent.count, 'result')}, {data_size(extent.size)}?{cost}")


def _to_come(inventory: Inventory, wanted: Filter, extent: Extent, *, dry_run: bool) -> Counter[str]:
    files = 0 if dry_run else sum(map(len, inventory.folders.values()))
    requests = Counter(LIST=pages(inventory.listed.count), DELETE_OBJECTS=pages(extent.count) + pages(files))
    if wanted.needs_metadata:
        requests["GET"] = extent.count
    return requests


def _carry_out(inventory: Inventory, wanted: Filter, extent: Extent, *, dry_run: bool) -> Extent:
    gone = Extent()
    with progress("Looking" if dry_run else "Forgetting", extent.count) as advance:
        for found in inventory.matching(wanted, advance) if dry_run else inventory.forget(wanted, advance):
            gone.add(found.entry)
    return gone


# -- telling


def _price(requests: Mapping[str, int], backend: S3Backend) -> str:
    return f" That takes {price(requests, backend.settings)}." if expensive(requests) else ""


def _print(done: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(done | {"dry_run": dry_run})
        return
    missing = f" {counted(len(done['missing']), 'id')} had nothing." if done["missing"] else ""
    what = _what(done["results"], done["groups"])
    click.echo(f"{'Would forget' if dry_run else 'Forgot'} {what}, {data_size(done['bytes'])}.{missing}")
