"""Which backend a file goes to, and comes from.

A serializer is told nothing but the value, and a handle may be used anywhere. So whoever has to do with a backend
leaves its name here, in this thread or greenlet, and otherwise the current task or app tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery._state import get_current_task
from celery.app import app_or_default

if TYPE_CHECKING:
    from .store import Files

__all__ = ["current", "eager", "files_at", "files_here", "last_used", "owner", "storing"]

#: The backend that is encoding a result, and of which task, where it is a whole one.
storing: ContextVar[tuple[Any, str | None]] = ContextVar("celery_s3_storing", default=(None, None))
#: The backend by which a task was sent, or a result read, most recently.
last_used: ContextVar[Any] = ContextVar("celery_s3_last_used", default=None)


def eager() -> bool:
    """Whether what is being encoded is a call in this very process, with `task_always_eager`."""
    task = get_current_task()
    return storing.get()[0] is None and bool(app_or_default(task and task.app).conf.task_always_eager)


def current() -> Any:
    """The backend that somebody has to do with right now; ``None`` where nobody has said so."""
    return storing.get()[0] or last_used.get()


def owner() -> str:
    """The id of the task that a file goes with; a new one where it is the argument of a call from no task."""
    task = get_current_task()
    return storing.get()[1] or (task and task.request.id) or uuid4().hex


def files_here() -> Files | None:
    """Where files go that are uploaded now; ``None`` without a backend of ours."""
    return next(_candidates(None), None)


def files_at(at: str, home: Any) -> tuple[Files | None, str]:
    """Where a file comes from.

    Arguments:
        at: bucket and prefix that its pointer tells.
        home: the backend by which it was read, if any.

    Returns:
        ``None`` where no backend of this process has files there; and where the nearest one has its own.
    """
    nearest = ""
    for files in _candidates(home):
        if files.at == at:
            return files, at
        nearest = nearest or files.at
    return None, nearest


def _candidates(home: Any) -> Iterator[Files]:
    task = get_current_task()
    nearer = (storing.get()[0], home, last_used.get(), task and task.backend)
    for backend in filter(None, nearer):
        if (files := getattr(backend, "files", None)) is not None:
            yield files
    files = getattr(app_or_default().backend, "files", None)
    if files is not None:
        yield files
