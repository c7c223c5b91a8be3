"""Results in asyncio: ``await`` one, or take many as they come, without a thread for each.

::

    value = await celery_s3.aio.result(add.delay(2, 2), timeout=10)

    async for done in celery_s3.aio.as_completed(results):
        print(done.id, done.state, done.result)

One thread a process watches them all, whichever event loops wait. Cancelling leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from celery.exceptions import TimeoutError
from celery.result import AsyncResult, EagerResult, ResultBase, ResultSet

from celery_s3.celery_private import keep_meta, known_meta
from celery_s3.errors import ConfigurationError

__all__ = ["as_completed", "result"]


async def result(result: ResultBase, timeout: float | None = None, *, propagate: bool = True) -> Any:
    """What ``result.get()`` returns, without blocking the event loop.

    Arguments:
        result: of a task; or of a group, whose values come as a list in its order.
        timeout: seconds; ``None``: for ever.
        propagate: raise the task's error, or that of a task before it; else return it.

    Raises:
        celery.exceptions.TimeoutError: the time is over.
        ConfigurationError: the result is of another backend.
        ResultNotRead: the store failed, or what is stored is no result.
    """
    async with _within(timeout):
        return await _value(result, propagate=propagate)


async def as_completed(results: Iterable[AsyncResult], timeout: float | None = None) -> AsyncIterator[AsyncResult]:
    """The results of tasks as they end, whatever the outcome: each is ready, and asking it costs no request.

    Arguments:
        results: of single tasks; a group's are ``group.results``.
        timeout: seconds for all of them.

    Raises:
        celery.exceptions.TimeoutError: the time is over.
        ConfigurationError: one is of another backend.
        ResultNotRead: the store failed, or what is stored is no result.
    """
    wanted = list(results)
    done: asyncio.Queue[tuple[AsyncResult, asyncio.Future[None]]] = asyncio.Queue()
    futures = []
    loop = asyncio.get_running_loop()
    end = None if timeout is None else loop.time() + timeout
    try:
        for one in wanted:
            future = _ended(one, propagate=False)
            futures.append(future)
            future.add_done_callback(lambda future, one=one: done.put_nowait((one, future)))  # type: ignore[misc]
        for _ in wanted:
            async with _within(None if end is None else end - loop.time(), timeout):
                one, future = await done.get()
            future.result()
            yield one
    finally:
        for future in futures:
            future.cancel()


class _within:  # noqa: N801 - used like a function
    """Celery's TimeoutError after so many seconds."""

    def __init__(self, seconds: float | None, said: float | None = None) -> None:
        self._said = seconds if said is None else said
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except OSError:  # the builtin TimeoutError is one
            if not self._timeout.expired():
                raise
            raise TimeoutError(f"The result was not there after {self._said} seconds.") from None


async def _value(result: ResultBase, *, propagate: bool) -> Any:
    if isinstance(result, ResultSet):
        return await _values(result, propagate=propagate)
    if result.ignored:
        return None
    await _ended(result, propagate=propagate)
    return result.maybe_throw(propagate=propagate)


async def _values(group: ResultSet, *, propagate: bool) -> list[Any]:
    """The values of a group in its order; its first error is raised when it is there."""
    tasks = [asyncio.ensure_future(_value(member, propagate=propagate)) for member in group.results]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ended(result: AsyncResult, *, propagate: bool) -> asyncio.Future[None]:
    """Done when a result knows its meta."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    if isinstance(result, EagerResult) or known_meta(result) is not None:
        future.set_result(None)
        return future
    backend = result.backend
    if not hasattr(backend, "watch"):
        raise ConfigurationError(
            f"The result of task {result.id} is of {type(backend).__name__}: celery_s3.aio awaits those of celery-s3"
            " alone. Set `result_backend` to it."
        )
    told = partial(_told, loop, partial(_settle, future, result))
    cancel: Callable[[], None] = backend.watch(result, told, follow_parents=propagate)
    future.add_done_callback(lambda _: cancel())
    return future


def _told(loop: asyncio.AbstractEventLoop, settle: Callable[[Any], None], outcome: Any) -> None:
    """In the watcher's thread."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle, outcome)


def _settle(future: asyncio.Future[None], result: AsyncResult, outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        keep_meta(result, outcome)
        future.set_result(None)
