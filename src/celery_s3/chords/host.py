"""What the chords of a backend need of Celery's backend."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Host"]


class Host(Protocol):
    """The methods of :class:`celery.backends.base.Backend` that chords call, as Celery has them.

    Attributes:
        app: the Celery app.
    """

    app: Any

    def encode(self, data: Any) -> bytes | str:
        """The data in the result serializer, compressed where that is configured."""

    def decode(self, payload: bytes) -> Any:
        """What :meth:`encode` was given."""

    def encode_result(self, result: Any, state: str) -> Any:
        """A value as it stands in a meta: what stands for an exception, in states that have one."""

    def exception_to_python(self, exc: Any) -> BaseException | None:
        """The exception that :meth:`encode_result` was given."""

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """The meta of a task's result."""

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is stored for the task."""

    def store_result(self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None) -> Any:
        """Store a result; a chord member's part before it."""

    def on_chord_part_return(self, request: Any, state: str, result: Any) -> None:
        """Go on with the chord that the request's task is a member of, if any."""

    def chord_error_from_stack(self, callback: Any, exc: Any) -> Any:
        """Store a body's failure and call its errbacks."""
