"""``celery s3 wait``: wait for a result."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click
from celery import states
from celery.exceptions import TimeoutError

from celery_s3.backends.s3 import S3Backend

from .body import print_bytes
from .command import command as s3_command
from .context import json_option, with_backend
from .lookup import keys_of
from .output import print_json, printable
from .query import duration
from .values import jsonable, print_traceback, print_value

__all__ = ["command"]

#: Exit codes; click's own are 1 for an error and 2 for a wrong option.
FAILED = 3
TIMED_OUT = 4


@s3_command("wait", example="6f1c0a52-3a0e-4c0e-9a35-0d4c6f2f9a11 --timeout 5m")
@click.argument("id")
@click.option("--timeout", type=duration, help="Give up after this time, as 90s or 1h; else it waits for ever.")
@json_option
@with_backend
def command(backend: S3Backend, id: str, timeout: float | None, as_json: bool) -> None:
    """Wait for a result and print it; one that is bytes as it is.

    It looks as `AsyncResult.get()` does: often at first, then ever less, at most every 2 seconds; each look is one
    request. Celery cannot tell a task that has not finished from one that never was: name a --timeout.

    With --json it also prints the state when the time is over, which is one more request.

    The exit code is 0 for SUCCESS alone, 3 for a task that failed or was revoked, 4 when the time is over, 130 after
    Ctrl-C; 1 and 2 as everywhere.
    """
    keys_of(backend, id)
    result = backend.app.AsyncResult(id)
    if sys.stderr.isatty():
        click.echo(f"Waiting for {printable(id)}; Ctrl-C ends it.", err=True)
    try:
        value = result.get(timeout=timeout, propagate=False)
    except TimeoutError:
        if as_json:
            _print_record(id, backend.get_task_meta(id))
        click.echo(f"{printable(id)} has no result after {timeout:g} seconds.", err=True)
        raise SystemExit(TIMED_OUT) from None
    state, traceback = result.state, result.traceback
    if as_json:
        _print_record(id, {"status": state, "result": value, "traceback": traceback})
    elif traceback:
        print_traceback(str(traceback))
    elif type(value) is bytes:
        print_bytes([value])
    else:
        print_value(value)
    if state != states.SUCCESS:
        click.echo(f"{printable(id)} ended with {printable(state)}.", err=True)
        raise SystemExit(FAILED)


def _print_record(id: str, meta: Mapping[str, Any]) -> None:
    told = {"result": jsonable(meta["result"]), "traceback": meta.get("traceback")}
    print_json({"id": id, "state": meta["status"], **told})
