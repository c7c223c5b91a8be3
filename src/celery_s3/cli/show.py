"""``celery s3 show``: everything that is known of one result, or of a saved group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from celery import states
from celery.result import AsyncResult, GroupResult, ResultBase, result_from_tuple

from celery_s3.backends.s3 import S3Backend
from celery_s3.codec import raw
from celery_s3.errors import ResultNotRead, StoreError, UnreadableResult
from celery_s3.metadata import state_of, task_of
from celery_s3.operate.inventory import time_of
from celery_s3.store.api import Object

from .body import print_raw, size_of_bytes, write_file
from .command import command as s3_command
from .context import json_option, with_backend
from .files import fetch, files_of, files_of_result, told
from .lookup import stored
from .output import data_size, duration, print_json, print_table
from .query import inventory_of
from .values import jsonable, one_line, print_fields, print_traceback, print_value

__all__ = ["SHOWN", "Shown", "command"]

#: Bytes of the largest result that is printed for people.
SHOWN = 1024 * 1024
#: Members of a group whose states are read, each with a request.
MEMBERS = 500
#: What a meta has only with `result_extended`, and how it is called here.
EXTENDED = ("worker", "queue", "retries", "args", "kwargs")


@s3_command("show", example="6f1c0a52-3a0e-4c0e-9a35-0d4c6f2f9a11")
@click.argument("id")
@click.option("--raw", is_flag=True, help="Print the bytes of the stored body, and nothing else.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the file that the result is or holds; of a result that is bytes, those; else the stored body.",
)
@json_option
@with_backend
def command(backend: S3Backend, id: str, raw: bool, output: Path | None, as_json: bool) -> None:
    """Show one result, or a saved group.

    State, times, size, storage class and expiry; task, worker and arguments where `result_extended` stored them;
    children and parent; then the result, or the error and its traceback. A result over 1 MB is left out unless --json
    is given. Of a group: its members, and their states if they are no more than 500.

    --output fetches a file (S3File), several into a folder that exists. Of a result without files it writes what is
    stored and decodes nothing, as --raw does: both also work where `result_accept_content` or a missing serializer
    forbids it; --raw --output writes the body of a result with files too. What is written is put in its place when it
    is complete.

    The exit code is 1 where there is no such result, or it cannot be decoded. Needs s3:GetObject; the storage class
    also s3:ListBucket.
    """
    if as_json and (raw or output is not None):
        raise click.UsageError("--json excludes --raw and --output.")
    found, is_group = stored(backend, id)
    if raw and output is None:
        print_raw(backend.store, found)
    elif output is not None and not raw and (files := files_of_result(backend, id, found)):
        click.echo(f"Wrote {told(fetch(files, output))}.", err=True)
    elif output is not None:
        size = write_file(backend.results, found, output)
        click.echo(f"Wrote {data_size(size)} to {output}.", err=True)
    elif is_group:
        Shown(backend, id, found).group(as_json)
    else:
        Shown(backend, id, found).result(as_json)


class Shown:
    """What is shown of one object."""

    def __init__(self, backend: S3Backend, id: str, found: Object) -> None:
        self.backend = backend
        self.id = id
        self.found = found
        self.about = self._about()

    def _about(self) -> dict[str, Any]:
        """What is known without the body, by the names of the JSON output."""
        found = self.found
        return {
            "id": self.id,
            "state": state_of(found.metadata),
            "task": task_of(found.metadata),
            "stored": found.modified,
            "done": None,
            "expires": time_of(self.backend.results.expires_at(found)),
            "size": found.size,
            "storage_class": _storage_class(self.backend, found.key) or None,
            "etag": found.etag,
            "key": found.key,
            "content_type": found.content_type,
        }

    # -- a result

    def result(self, as_json: bool) -> None:
        """Print a result."""
        if self.found.size > SHOWN and not as_json:
            self._print(self.about)
            click.echo(f"\n{self._large()}")
            return
        try:
            meta = self.backend.reader.meta_in(self.id, self.found)
        except UnreadableResult as exc:
            self._without_body(exc, as_json)
            raise SystemExit(1) from exc
        if meta["status"] == states.PENDING:
            raise self._gone()
        about = self.about | self.from_body(meta)
        if as_json:
            print_json(about | {"result": jsonable(meta["result"]), "traceback": meta.get("traceback")})
            return
        self._print(about)
        click.echo()
        if meta.get("traceback"):
            print_traceback(str(meta["traceback"]))
        elif isinstance(meta["result"], bytes) and self.found.content_type == raw.CONTENT_TYPE:
            click.echo(_bytes_hint(len(meta["result"])))
        else:
            print_value(meta["result"])
            if any(files_of(meta["result"])):
                click.echo("\n--output FILE fetches the file; several go into a folder.")

    def _large(self) -> str:
        size = size_of_bytes(self.found)
        if size is not None:
            return _bytes_hint(size)
        return "The result is not shown, it is large: --json prints it, --output FILE fetches its bytes."

    def _without_body(self, exc: UnreadableResult, as_json: bool) -> None:
        if as_json:
            print_json(self.about | {"error": str(exc)})
        else:
            self._print(self.about)
            click.echo(f"Error: {one_line(str(exc))} --raw and --output still give you its bytes.", err=True)

    def from_body(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """What the body tells of the task."""
        told = {
            "state": meta["status"],
            "task": meta.get("name") or self.about["task"],
            "done": _time(meta.get("date_done")),
            "group": meta.get("group_id"),
            "parent": meta.get("parent_id"),
            "children": [node.id for node in _nodes(meta.get("children"), self.backend.app)],
        }
        return told | {name: jsonable(meta.get(name)) for name in EXTENDED}

    # -- a saved group

    def group(self, as_json: bool) -> None:
        """Print a saved group."""
        try:
            meta = self.backend.reader.group_in(self.id, self.found, self.restored)
        except UnreadableResult as exc:
            self._without_body(exc, as_json)
            raise SystemExit(1) from exc
        if meta is None:
            raise self._gone()
        group = meta["result"]
        members = self.members(group.results)
        about = {name: value for name, value in self.about.items() if name not in ("state", "task", "done")}
        about["parent"] = group.parent.id if group.parent else None
        if as_json:
            print_json(about | {"members": [{"id": id, "state": state} for id, state in members]})
            return
        counts = Counter(state for _, state in members if state)
        told = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
        self._print(about | {"members": f"{len(members):,}: {told or 'too many to read their states'}"})
        click.echo()
        if members:
            print_table(("MEMBER", "STATE"), [(id, state or "?") for id, state in members])

    def restored(self, meta: Any) -> dict[str, Any]:
        """The group in a decoded body; a TypeError where there is none."""
        group = result_from_tuple(meta["result"], self.backend.app)
        if not isinstance(group, GroupResult):
            raise TypeError("no group in it")
        return {"result": group}

    def members(self, results: Sequence[ResultBase]) -> list[tuple[str, str | None]]:
        """The id and state of each member.

        The state is ``None`` for a group in the group, where another writer left none, and where they are too many.
        """
        tasks = [result.id for result in results if isinstance(result, AsyncResult)]
        if len(tasks) > MEMBERS:
            return [(result.id, None) for result in results]
        known = {found.id: found for found in inventory_of(self.backend, yes=True).known(tasks)}
        told = {id: known[id].state if id in known else states.PENDING for id in tasks}
        return [(result.id, told.get(result.id)) for result in results]

    def _gone(self) -> ResultNotRead:
        return ResultNotRead(f"{self.id} was forgotten while it was read.", self.id)

    # -- for people

    def _print(self, about: Mapping[str, Any]) -> None:
        shown = {name.replace("_", " "): _for_people(value) for name, value in about.items()}
        shown["size"] = data_size(self.found.size)
        shown["key"] = f"s3://{self.backend.settings.bucket}/{self.found.key}"
        print_fields(shown)


def _bytes_hint(size: int) -> str:
    return f"The result is bytes, {size:,} of them: --output FILE writes them to a file."


def _for_people(value: Any) -> str:
    if value is None or value in ([], ""):
        return ""
    if isinstance(value, datetime):
        seconds = (value - datetime.now(UTC)).total_seconds()
        when = f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"
        return f"{value:%Y-%m-%d %H:%M:%S} UTC, {when}"
    return value if isinstance(value, str) else one_line(value)


def _time(text: Any) -> Any:
    """Celery's text as a time, where it tells its offset."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return text
    return time.astimezone(UTC) if time.tzinfo else text


def _nodes(children: Any, app: Any) -> list[ResultBase]:
    """The results of the tasks that this one has sent."""
    try:
        return [result_from_tuple(child, app) for child in children or ()]
    except (TypeError, ValueError):  # no results as Celery stores them
        return []


def _storage_class(backend: S3Backend, key: str) -> str:
    """The storage class of an object, by a LIST of its key: obstore's answer to a GET does not tell it."""
    try:
        first = next(backend.store.list(key), None)
    except StoreError:
        return ""
    return first.storage_class if first is not None and first.key == key else ""
