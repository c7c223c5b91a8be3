"""What commands share: the backend of the app that they are called for, and options of the same name."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import click
from celery.exceptions import ImproperlyConfigured

from celery_s3.backends.s3 import S3Backend

__all__ = ["dry_run_option", "json_option", "terminated_like_interrupted", "with_backend"]

_F = TypeVar("_F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def with_backend(fn: _F) -> Callable[..., Any]:
    """Call a command with the backend of the app that ``celery -A`` names."""

    @click.pass_context
    @wraps(fn)
    def command(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        return fn(_backend_of(ctx.obj.app), *args, **kwargs)

    return command


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the block, so that its ``finally`` clauses run; the exit code is 1."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _backend_of(app: Any) -> S3Backend:
    try:
        backend = app.backend
    except ImproperlyConfigured as exc:
        raise click.ClickException(str(exc)) from exc
    if isinstance(backend, S3Backend):
        return backend
    raise click.ClickException(
        f"The result backend of app {app.main or 'default'!r} is {type(backend).__name__}, not celery-s3's."
        " Name the app that you mean with `celery -A proj s3 …`; its `result_backend` must be"
        " 'celery_s3.backends.S3Backend' or a URL that begins with celery-s3://."
    )
