"""Storing what a task has come to, in the way that the calling thread can."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery_s3.chords.members import Members

from .consumer import Consumer
from .overlap import Overlap

__all__ = ["Storing"]


class Storing:
    """Stores states: later from the thread that receives tasks, beside the next task where that may be, else at once.

    Arguments:
        consumer: the thread that receives tasks.
        overlap: what a child stores while it goes on.
        members: what a state means for the chord that its task belongs to.
    """

    def __init__(self, consumer: Consumer, overlap: Overlap, members: Members) -> None:
        self._consumer = consumer
        self._overlap = overlap
        self._members = members

    def store(self, store: Callable[[], Any], task_id: str, result: Any, state: str, request: Any) -> Any:
        """Store a state by ``store``; what a chord's member has come to goes to its chord first.

        Returns:
            What ``store`` returns, or ``result`` where it is called later.

        Raises:
            ResultNotStored: the part was not delivered; nothing is stored then.
            Whatever ``store`` raises in this thread.
        """
        what = f"{state} of task {task_id}"
        if self._members.reported(state):
            told = task_id, result, state, request
            if self._overlap.store(store, partial(self._members.deferred, *told), what, *told):
                return result
            store = partial(self._members.store, store, *told)
        return self._consumer.spared(store, task_id, what, result)
