"""What the counters tell: the line that a worker logs at its end, and its answer to a remote control command.

Nothing here runs while results are stored or fetched: :mod:`celery_s3.store.counting` counts, and
:mod:`celery_s3.store.tracing` has metrics and spans.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown, worker_ready, worker_shutdown
from kombu.exceptions import OperationalError

from celery_s3.errors import NoRemoteControl
from celery_s3.printable import get_logger
from celery_s3.processes import prefork_parent
from celery_s3.settings import Settings
from celery_s3.store.counting import Snapshot, Tally

__all__ = ["COMMAND", "Reporter", "ask_workers", "summary"]

logger = get_logger(__name__)

#: The remote control command that workers answer.
COMMAND = "celery_s3_requests"


# -- the log


class Reporter:
    """Logs what a worker has asked of S3 when it ends; lets the children of a prefork worker count with it.

    The main process of a prefork worker tells the sum, children included that were killed. A child that it cannot
    see (started by spawn, or before the backend was made) tells for itself.
    """

    def __init__(self, tally: Tally, settings: Settings) -> None:
        self._tally = tally
        self._settings = settings
        self._last_logged: Snapshot = {}
        # Celery before 5.7 tells bound methods apart by their function alone: without a name of its own, the second
        # backend of a process would not be connected.
        name = f"celery-s3-report-{id(self)}"
        worker_process_init.connect(self._child_began, dispatch_uid=name)
        worker_process_shutdown.connect(self._child_ends, dispatch_uid=name)
        worker_shutdown.connect(self._worker_ends, dispatch_uid=name)

    def _child_began(self, **_: Any) -> None:
        self._tally.join()

    def _child_ends(self, **_: Any) -> None:
        told_by_parent = self._tally.join()
        self._log(logging.DEBUG if told_by_parent else logging.INFO, "process", self._tally.snapshot())

    def _worker_ends(self, **_: Any) -> None:
        self._log(logging.INFO, "worker", self._tally.worker_snapshot())

    def _log(self, level: int, whose: str, counted: Snapshot) -> None:
        # Not twice: when a second Ctrl-C makes a warm shutdown a cold one, Celery sends `worker_shutdown` again.
        if counted == self._last_logged or not logger.isEnabledFor(level):
            return
        self._last_logged = counted
        text, fields = summary(counted, self._settings)
        logger.log(level, "S3 requests of this %s: %s", whose, text, extra=fields)


def summary(counted: Snapshot, settings: Settings) -> tuple[str, dict[str, Any]]:
    """What was counted and what it costs: for people, and as fields of a log record."""
    from .prices import bill, list_prices  # a worker needs it once, at its end

    prices = list_prices(settings.bucket)
    items = bill(counted, prices)
    fields = {
        name: sum(getattr(item, name) for item in items)
        for name in ("requests", "retries", "throttles", "conflicts", "bytes_up", "bytes_down", "dollars")
    }
    parts = [", ".join(f"{item.requests:,} {item.verb}" for item in items) or "none"]
    parts += [f"{fields[name]:,} {name}" for name in ("retries", "throttles", "conflicts") if fields[name]]
    parts += [f"{fields['bytes_up']:,} bytes up, {fields['bytes_down']:,} down"]
    parts += [f"${fields['dollars']:.6f} at the list price of {prices.title}, {prices.date}"]
    return "; ".join(parts), {f"s3_{name}": value for name, value in fields.items()}


# -- asking the workers


def _register(**_: Any) -> None:
    # A worker has imported this module anyway; at the top, each client would pay for its import too.
    from celery.worker.control import inspect_command

    inspect_command(name=COMMAND)(_answer)


worker_ready.connect(_register, dispatch_uid="celery-s3-command")


def _answer(state: Any, **_: Any) -> dict[str, Any]:
    """What this worker has asked of S3."""
    tally = getattr(state.app.backend, "tally", None)
    if not isinstance(tally, Tally):
        return {"error": "the worker's result backend is not celery-s3's"}
    pool = set(state.consumer.pool.info.get("processes", ())) if prefork_parent() else set()
    return {"counted": tally.worker_snapshot(), "pid": os.getpid(), "uncounted": len(pool - tally.processes())}


def ask_workers(app: Any, timeout: float = 1.0) -> dict[str, dict[str, Any]]:
    """What each worker has asked of S3 since it started, by its name: ``counted``, a snapshot; ``pid``; and
    ``uncounted``, the number of its processes that it cannot see. Or ``error``.

    Arguments:
        timeout: seconds to wait for answers.

    Raises:
        NoRemoteControl: the broker cannot reach all workers, or does not answer.
    """
    with app.connection_for_write() as connection:
        if not _has_fanout(connection):
            raise NoRemoteControl(
                f"The broker ({connection.transport.driver_type}) has no remote control: workers cannot be asked."
                " Each logs its requests and dollars when it ends, at level INFO: search their logs for"
                " `S3 requests of this worker`. For numbers while they run, set `opentelemetry`."
            )
    try:
        replies = app.control.broadcast(COMMAND, reply=True, timeout=timeout) or ()
    except OperationalError as exc:
        raise NoRemoteControl(f"The workers cannot be asked, for the broker does not answer: {exc}.") from exc
    return {name: answer for reply in replies for name, answer in reply.items()}


def _has_fanout(connection: Any) -> bool:
    """Whether a message reaches all workers; no connection is made."""
    transport = connection.transport
    if "fanout" in transport.implements.exchange_type:
        return True
    # SQS can, by SNS, where the application says so.
    return bool((connection.transport_options or {}).get("supports_fanout", False))
