"""Which backend a file goes to, and comes from.

A serializer is told nothing but the value, and a handle may be used anywhere. So whoever has to do with a backend
leaves its name here, in this thread or greenlet, and otherwise the current task or app tells. A file goes to whoever
sends or stores it: a backend that was read by before has no part in that, unless nobody else is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery.app import app_or_default
from celery.signals import before_task_publish

from celery_s3.celery_private import current_task

if TYPE_CHECKING:
    from .store import Files

__all__ = ["current", "eager", "files_at", "files_here", "last_used", "owner", "run", "sending", "storing"]

#: The backend that is encoding a result, and of which task, where it is a whole one.
storing: ContextVar[tuple[Any, str | None]] = ContextVar("celery_s3_storing", default=(None, None))
#: The backend by which a task is being sent, and the task's id.
sending: ContextVar[tuple[Any, str | None]] = ContextVar("celery_s3_sending", default=(None, None))
#: The backend by which a task was sent, or a result read, most recently.
last_used: ContextVar[Any] = ContextVar("celery_s3_last_used", default=None)


def _publishing(headers: Any = None, **_: object) -> None:
    """A call that ignores its result tells no backend: what the call before it has left is not its own."""
    id = headers.get("id") if isinstance(headers, dict) else None
    if id and sending.get()[1] != id:
        sending.set((None, None))


before_task_publish.connect(_publishing)


def eager() -> bool:
    """Whether what is being encoded is a call in this very process, with `task_always_eager`."""
    task = current_task()
    return storing.get()[0] is None and bool(app_or_default(task and task.app).conf.task_always_eager)


def current() -> Any:
    """The backend that somebody has to do with right now; ``None`` where nobody has said so."""
    return storing.get()[0] or last_used.get()


def owner() -> str | None:
    """The id of the task that a file goes with; ``None`` where it is the argument of a call from no task."""
    task = current_task()
    return storing.get()[1] or (task and task.request.id) or None


def run() -> int:
    """Which run of the task this is: what was deleted with an earlier one's result is not handed out again."""
    task = current_task()
    return (task and task.request.retries) or 0


def files_here() -> Files | None:
    """Where files go that are uploaded now; ``None`` without a backend of ours."""
    task = current_task()
    nearer = (storing.get()[0], sending.get()[0], task and task.backend)
    return next(_files_of(*nearer), None) or _of_the_app() or next(_files_of(last_used.get()), None)


def files_at(at: str, server: str, home: Any) -> tuple[Files | None, str]:
    """Where a file comes from.

    Arguments:
        at: bucket and prefix that its pointer tells.
        server: what its pointer tells of the server. One of that name is taken first; it may have several names.
        home: the backend by which it was read, if any.

    Returns:
        ``None`` where no backend of this process has files there; and where the nearest one has its own.
    """
    nearest, found = "", None
    for files in _candidates(home):
        if files.at == at and files.server == server:
            return files, at
        found = found or (files if files.at == at else None)
        nearest = nearest or files.at
    return found, nearest


def _candidates(home: Any) -> Iterator[Files]:
    task = current_task()
    yield from _files_of(storing.get()[0], home, last_used.get(), task and task.backend)
    if (files := _of_the_app()) is not None:
        yield files


def _files_of(*backends: Any) -> Iterator[Files]:
    for backend in filter(None, backends):
        if (files := getattr(backend, "files", None)) is not None:
            yield files


def _of_the_app() -> Files | None:
    return getattr(app_or_default().backend, "files", None)
