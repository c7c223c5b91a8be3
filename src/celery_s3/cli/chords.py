"""``celery s3 chords``: chords in flight, and mending those that are stuck."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
from celery import states

from celery_s3.backends.s3 import S3Backend
from celery_s3.chords.body import body_in
from celery_s3.chords.manifest import Manifest
from celery_s3.chords.survey import Chord
from celery_s3.errors import CeleryS3Error
from celery_s3.operate.inventory import Found
from celery_s3.store.api import Entry

from .command import command as s3_command
from .command import program
from .context import dry_run_option, json_option, with_backend
from .output import bar, counted, duration, print_json, print_table, printable
from .query import confirm, inventory_of, yes_option

__all__ = ["awaited_in", "body_names", "command"]

NEEDY = ("stuck", "complete")
#: Missing members whose states are read, each with a request.
MEMBERS = 500
#: Columns of a terminal that leave room for a bar.
WIDE = 110


class _Found(NamedTuple):
    """A chord, and the state it was in before it was mended."""

    chord: Chord
    was: str = ""


@s3_command("chords", example="--repair")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "settled", is_flag=True, help="Also chords that are sent or failed, of the last 15 days.")
@click.option("--repair", is_flag=True, help="Mend what is stuck: send what is complete and unsent.")
@yes_option
@dry_run_option
@json_option
@with_backend
def command(
    backend: S3Backend, ids: Sequence[str], settled: bool, repair: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """List chords in flight and mend stuck ones.

    All of them, or those of these IDs: of the group, of the body (which `apply_async()` returns) or of a member. Of
    these, the members that are missing are listed with their state. A chord is running, complete (about to be claimed),
    claimed (being sent) or stuck: all parts are there and nobody went on, whoever claimed it died, or a member has a
    result but no part. --repair mends that from what is stored. It may run beside workers, and sends nothing that is
    decided. It shows each task with its arguments, and asks: without `seal_keys` whoever may write to the bucket may
    have written them.

    An ID that is no group's takes a look at each chord of the last 15 days, one request. Needs s3:ListBucket; --repair
    also the broker. The exit code is 0 only when nothing is stuck.
    """
    chords, missing = _of(backend, ids) if ids else (list(backend.repairs.survey.chords(settled=settled)), ids)
    found = [_Found(chord) for chord in chords]
    if repair and not dry_run:
        backend.app.loader.import_default_modules()
        if not yes:
            _ask(backend, [one.chord for one in found if one.chord.state in NEEDY])
        found = [_mended(backend, one.chord) for one in found]
    found.sort(key=lambda one: -one.chord.age)
    awaited = {one.chord.group: awaited_in(backend, one.chord) for one in found} if ids else {}
    if as_json:
        print_json([_record(backend, one) | {"missing": awaited.get(one.chord.group)} for one in found])
    else:
        _print(backend, found, repair and dry_run)
        _print_awaited(awaited)
    for id in missing:
        click.echo(f"There is no chord of {printable(id)}: no group, body or member has that id.", err=True)
    if missing or any(one.chord.state == "stuck" for one in found):
        raise SystemExit(1)


def _of(backend: S3Backend, ids: Sequence[str]) -> tuple[list[Chord], list[str]]:
    """The chords of these ids, whatever of a chord's they are, and the ids that belong to none."""
    survey = backend.repairs.survey
    found = {chord.group: chord for chord in survey.chords(ids, settled=True)}
    left = set(ids) - found.keys()
    if left:
        for _, chord in backend.pool.stream(survey.read, survey.folders()):
            if isinstance(chord, BaseException):
                raise chord
            if chord is not None and (known := left & {*chord.manifest.ids, _body_id(backend, chord.manifest)}):
                found[chord.group] = survey.examined(chord)
                left -= known
    return list(found.values()), sorted(left)


def _body_id(backend: S3Backend, manifest: Manifest) -> str:
    try:
        return str(body_in(manifest, backend.app, trusted=backend.mending.trusted).id)
    except Exception:  # noqa: BLE001 (whatever a decoder makes of it)
        return ""


def awaited_in(backend: S3Backend, chord: Chord) -> list[dict[str, str | None]]:
    """The members that have not delivered, with their states and tasks; a request each."""
    if chord.decided:
        return []
    ids = [id for slot, id in enumerate(chord.manifest.ids) if (0, slot) not in chord.parts]
    if len(ids) > MEMBERS:
        return [{"id": id, "state": None, "task": None} for id in ids]
    known = {found.id: found for found in inventory_of(backend, yes=True).known(ids)}
    pending = Found("", Entry("", 0, datetime.now(UTC)), state=states.PENDING)
    return [{"id": id, "state": known.get(id, pending).state, "task": known.get(id, pending).task} for id in ids]


def _print_awaited(awaited: Mapping[str, Sequence[Mapping[str, str | None]]]) -> None:
    for group, members in awaited.items():
        if members:
            click.echo(f"\n{printable(group)} waits for {counted(len(members), 'member')}:")
            rows = [(str(one["id"]), one["state"] or "?", one["task"] or "?") for one in members[:MEMBERS]]
            print_table(("MEMBER", "STATE", "TASK"), rows)
            if len(members) > MEMBERS:
                click.echo(f"… and {len(members) - MEMBERS:,} more: --json lists all.")


def _ask(backend: S3Backend, needy: Sequence[Chord]) -> None:
    if not needy:
        return
    for chord in needy:
        click.echo(f"{printable(chord.group)}: {printable(_call(backend, chord.manifest))}", err=True)
    confirm(f"Send {'these bodies' if len(needy) > 1 else 'this body'} where all members are done?")


def _call(backend: S3Backend, manifest: Manifest) -> str:
    """The tasks of a body with the arguments that would be sent."""
    try:
        body = body_in(manifest, backend.app, trusted=backend.mending.trusted)
    except Exception as exc:  # noqa: BLE001 (whatever a decoder makes of it)
        return f"? ({exc})"
    # what is sent with it, or in its place where it fails, may hang on it anywhere: as `link`, `link_error`, `chord`
    return f"{_names(body)}: {dict(body)!r}" if _tasks_in(dict(body)) > 1 else repr(body)


def _tasks_in(value: Any) -> int:
    if isinstance(value, Mapping):
        return ("task" in value) + sum(map(_tasks_in, value.values()))
    return sum(map(_tasks_in, value)) if isinstance(value, list | tuple) else 0


def _mended(backend: S3Backend, chord: Chord) -> _Found:
    if chord.state not in NEEDY:
        return _Found(chord)
    try:
        after = backend.repairs.repair(chord)
    except CeleryS3Error as exc:
        click.echo(f"Chord {printable(chord.group)} could not be mended: {printable(str(exc))}", err=True)
        return _Found(replace(chord, state="stuck"))
    return _Found(after or replace(chord, state="sent"), chord.state)


def _record(backend: S3Backend, found: _Found) -> dict[str, Any]:
    chord = found.chord
    return {
        "group": chord.group,
        "state": chord.state,
        "was": found.was or None,
        "reason": chord.reason or None,
        "done": chord.done,
        "size": len(chord.manifest.ids),
        "started": chord.started,
        "age": round(chord.age),
        "body": body_names(backend, chord.manifest),
    }


def _print(backend: S3Backend, found: Sequence[_Found], dry_run: bool) -> None:
    if found:
        print_table(("GROUP", "AGE", "DONE", "STATE", "BODY"), [_row(backend, one) for one in found])
    stuck = [one.chord for one in found if one.chord.state == "stuck"]
    for chord in stuck:
        click.echo(f"{printable(chord.group)} is stuck: {printable(chord.reason) or 'see above'}.")
    flying = sum(not one.chord.decided for one in found)
    mended = sum(bool(one.was) for one in found)
    would = sum(one.chord.state in NEEDY for one in found)
    click.echo(f"{flying} in flight, {len(stuck)} stuck" + (f", {mended} mended" if mended else "") + ".")
    if dry_run:
        click.echo(f"--repair would mend {would}.")
    elif stuck and not mended:
        click.echo(f"Mend them with `{program()} chords --repair`.")


def _row(backend: S3Backend, found: _Found) -> tuple[str, ...]:
    chord, size = found.chord, len(found.chord.manifest.ids)
    done = bar(chord.done, size) if shutil.get_terminal_size().columns >= WIDE else f"{chord.done}/{size}"
    state = f"{chord.state} (was {found.was})" if found.was else chord.state
    return chord.group, duration(chord.age), done, state, body_names(backend, chord.manifest)


def body_names(backend: S3Backend, manifest: Manifest) -> str:
    """The names of the body's tasks: arguments may be secret."""
    try:
        return _names(body_in(manifest, backend.app, trusted=backend.mending.trusted))
    except Exception as exc:  # noqa: BLE001 (whatever a decoder makes of it)
        return f"? ({type(exc).__name__})"


def _names(signature: Any) -> str:
    members = getattr(signature, "tasks", None)
    kind = signature["task"].removeprefix("celery.")
    if kind not in ("chain", "group", "chord") or not members:
        return str(signature["task"])
    names = [_names(member) for member in members[:3]] + ["…"] * (len(members) > 3)
    return f"{kind}({', '.join(names)})"
