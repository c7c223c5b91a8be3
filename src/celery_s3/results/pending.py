"""``AsyncResult.then()``: whoever subscribes is told by the watcher's thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import ref

from celery.result import AsyncResult
from kombu.utils.encoding import bytes_to_str

from celery_s3.celery_private import keep_meta, known_meta
from celery_s3.printable import get_logger

from .reader import Meta
from .watcher import Watcher

__all__ = ["Pending"]

logger = get_logger(__name__)


class Pending:
    """The results that somebody has subscribed to.

    Arguments:
        follows: told of each, before it is watched.
    """

    def __init__(self, watcher: Watcher, follows: Callable[[AsyncResult], object]) -> None:
        self._watcher = watcher
        self._follows = follows
        #: how each is forgotten about, by its identity: two results may be of one task
        self._cancel: dict[int, Callable[[], None]] = {}

    def add(self, result: AsyncResult, *, weak: bool) -> None:
        """Let a result call those who subscribe to it when its task has ended.

        Arguments:
            weak: nobody is called once nobody else holds the result.
        """
        name = id(result)
        if known_meta(result) is not None or name in self._cancel:
            return
        self._follows(result)
        held = ref(result, lambda _: self._drop(name)) if weak else partial(_itself, result)
        done = partial(self._done, name, held)
        self._cancel[name] = self._watcher.watch(bytes_to_str(result.id), done)

    def remove(self, result: AsyncResult) -> None:
        """Call nobody any more."""
        self._drop(id(result))

    def _drop(self, name: int) -> None:
        cancel = self._cancel.pop(name, None)
        if cancel is not None:
            cancel()

    def _done(self, name: int, held: Callable[[], Any], outcome: Meta | BaseException) -> None:
        result = held()
        self._cancel.pop(name, None)
        if result is None:
            return
        if not isinstance(outcome, BaseException):
            keep_meta(result, outcome)
            return
        logger.error("Who subscribed to the result of task %s is not told it: %s", str(result.id), str(outcome))
        with suppress(type(outcome)):  # where nobody has subscribed to errors
            result.throw(outcome)


def _itself(result: AsyncResult) -> AsyncResult:
    return result
