"""Which task a file goes with, and which backend it goes to and comes from.

A serializer is told nothing but the value, and a handle may be used anywhere. So a backend that is about to send, store
or read something says so here, for this thread or greenlet; where none has, the current task or app tells. A file goes
to the backend that sends or stores it; one that something was read by comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery.app import app_or_default
from celery.signals import before_task_publish

from celery_s3.celery_private import current_task

if TYPE_CHECKING:
    from .objects import Files

__all__ = [
    "backend_in_use",
    "files_at",
    "files_here",
    "is_eager_call",
    "last_used",
    "owner_id",
    "run_number",
    "sending",
    "storing",
]

#: The backend that is encoding a result, and the id of its task; ``None`` for what is only a part of one.
storing: ContextVar[tuple[Any, str | None]] = ContextVar("celery_s3_storing", default=(None, None))
#: The backend by which a task is being sent, and the task's id.
sending: ContextVar[tuple[Any, str | None]] = ContextVar("celery_s3_sending", default=(None, None))
#: The backend by which a task was sent, or a result read, most recently.
last_used: ContextVar[Any] = ContextVar("celery_s3_last_used", default=None)


def _forget_the_call_before(headers: Any = None, **_: object) -> None:
    """Before a message is published: forget which backend sent the message before it, if that was another task's.

    Celery calls ``on_task_call``, which sets :data:`sending`, only for calls that do not ignore their result.
    """
    id = headers.get("id") if isinstance(headers, dict) else None
    if id and sending.get()[1] != id:
        sending.set((None, None))


before_task_publish.connect(_forget_the_call_before)


def is_eager_call() -> bool:
    """Whether what is being encoded is a call in this very process, with `task_always_eager`."""
    task = current_task()
    return storing.get()[0] is None and bool(app_or_default(task and task.app).conf.task_always_eager)


def backend_in_use() -> Any:
    """The backend that is storing a result now, or was used most recently; ``None`` where none was."""
    return storing.get()[0] or last_used.get()


def owner_id() -> str | None:
    """The id of the task that a file goes with; ``None`` where it is the argument of a call from no task."""
    task = current_task()
    return storing.get()[1] or (task and task.request.id) or None


def run_number() -> int:
    """Which run of the task this is, 0 for the first.

    A file is uploaded again in each: that of an earlier run may be deleted with what that run has stored.
    """
    task = current_task()
    return (task and task.request.retries) or 0


def files_here() -> Files | None:
    """Where a file goes that is uploaded now; ``None`` without a backend of ours."""
    task = current_task()
    concerned = (storing.get()[0], sending.get()[0], task and task.backend)
    return next(_files_of(*concerned), None) or _of_the_app() or next(_files_of(last_used.get()), None)


def files_at(at: str, server: str, read_by: Any) -> tuple[Files | None, str]:
    """Where a file comes from.

    Arguments:
        at: bucket and prefix as its pointer tells them.
        server: what its pointer tells of the server. A backend with the same is preferred; any other is taken where
            there is none, since one server may have several addresses.
        read_by: the backend by which its pointer came here, if any.

    Returns:
        The files of a backend that has them there, ``None`` where no backend of this process does; and where the most
        likely one has its own, for an error's text.
    """
    nearest, found = "", None
    for files in _candidates(read_by):
        if files.at == at and files.server == server:
            return files, at
        found = found or (files if files.at == at else None)
        nearest = nearest or files.at
    return found, nearest


def _candidates(read_by: Any) -> Iterator[Files]:
    task = current_task()
    yield from _files_of(storing.get()[0], read_by, last_used.get(), task and task.backend)
    if (files := _of_the_app()) is not None:
        yield files


def _files_of(*backends: Any) -> Iterator[Files]:
    for backend in filter(None, backends):
        if (files := getattr(backend, "files", None)) is not None:
            yield files


def _of_the_app() -> Files | None:
    return getattr(app_or_default().backend, "files", None)
