"""What we use of Celery and kombu that they do not promise: the one file that a new Celery may touch.

Verified on Celery 5.4.0, 5.5.3, 5.6.2 and 5.7.0; ``tests/unit/test_architecture.py`` keeps such names out of every
other module. What is optional on one of these versions has its fallback here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from types import FrameType
from typing import Any, Literal, NamedTuple

import celery
from celery import canvas, states
from celery._state import _task_stack, get_current_task
from celery.backends.base import KeyValueStoreBackend
from celery.result import AsyncResult, ResultBase, ResultSet
from celery.utils.collections import ConfigurationView
from celery.utils.functional import _regen
from kombu.serialization import registry
from kombu.utils.encoding import bytes_to_str
from vine import barrier

from celery_s3.keys import encode_id

__all__ = [
    "DECODERS",
    "ENCODERS",
    "AskingGroup",
    "ParentCheck",
    "ResultBackend",
    "asks_before_writing",
    "called_by_then",
    "current_task",
    "generated_header",
    "hold_back",
    "how_joined",
    "is_chain",
    "keep_meta",
    "known_meta",
    "parents_of",
    "publish",
    "reply_to_of",
    "run_what_is_due",
    "sending_as",
    "set_reply_to",
    "settled_by_result",
    "who_asks",
    "who_asks_for_children",
]


# -- the backend

#: Whether :meth:`ResultBackend._get_result_meta` makes what this Celery makes: none but those it was compared with.
_KNOWS_META = (5, 4) <= celery.VERSION[:2] <= (5, 7)
#: Celery before 5.5 tells in UTC when a task has ended, whatever its `timezone`.
_DATES_ARE_UTC = celery.VERSION[:2] < (5, 5)


class ResultBackend(KeyValueStoreBackend):
    """Celery's base class of result backends, with public names for the hooks and attributes that it keeps private.

    A backend implements ``store_meta``, ``fetch_meta`` and ``fetch_group``, may extend ``forget_result``, and calls
    the others.
    """

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        # once a result, for it asks the clock
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)
        self.store_meta(meta, request)
        return result

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, format_date: bool = True, encode: bool = False
    ) -> dict[str, Any]:
        """What Celery makes of a state, in a third of the time; its own where that could be anything else."""
        if not _KNOWS_META or not format_date or encode or setting(self.app.conf, "result_extended"):
            meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, format_date, encode)
            return meta
        children, done = self.current_task_children(request), None
        if state in states.READY_STATES:
            done = datetime.now(UTC if _DATES_ARE_UTC else self.app.timezone).isoformat()
        meta = {"status": state, "result": result, "traceback": traceback, "children": children, "date_done": done}
        for name, said in (("group_id", "group"), ("parent_id", "parent_id")) if request else ():
            if value := getattr(request, said, None):
                meta[name] = value
        return meta

    def store_meta(self, meta: dict[str, Any], request: Any) -> None:
        """Store a task's meta, whose ``result`` is what ``encode_result`` has made of its value or exception.

        Arguments:
            request: the task's; ``None`` or incomplete where another process reports for it.
        """
        raise NotImplementedError

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self.fetch_meta(task_id)

    def fetch_meta(self, task_id: str) -> dict[str, Any]:
        """The stored meta of a task, that of PENDING where nothing is stored; remembered by the caller."""
        raise NotImplementedError

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        return self.fetch_group(group_id)

    def fetch_group(self, group_id: str) -> dict[str, Any] | None:
        """``{"result": GroupResult}`` of a saved group, ``None`` where there is none."""
        raise NotImplementedError

    def _get_key_for(self, prefix: str, id: Any, key: str = "") -> str:
        return f"{prefix}{encode_id(id)}{key}"

    def _forget(self, task_id: str) -> None:
        self.forget_result(task_id)

    def forget_result(self, task_id: str) -> None:
        """Delete what is stored for a task."""
        super()._forget(task_id)

    def _call_task_errbacks(self, request: Any, exc: BaseException, traceback: Any) -> None:
        self.call_errbacks(request, exc, traceback)

    def call_errbacks(self, request: Any, error: BaseException, traceback: Any) -> None:
        """Call or send the errbacks of a task that has failed."""
        super()._call_task_errbacks(request, error, traceback)

    def _sleep(self, amount: float) -> None:
        self.pause(amount)

    def pause(self, seconds: float) -> None:
        """Wait before ``result_backend_always_retry`` tries again."""
        super()._sleep(seconds)

    @property
    def known_metas(self) -> Any:
        """The metas that this process remembers, a mapping by id."""
        return self._cache

    def _ensure_not_eager(self) -> None:
        """Warn where results are asked for that eager tasks do not store."""
        if setting(self.app.conf, "task_always_eager"):  # else it need not be asked for twice
            super()._ensure_not_eager()

    warn_if_eager = _ensure_not_eager


# -- settings

#: Whether this Celery looks for all names of a setting in one place before it goes to the next, as :func:`setting`
#: does: not before 5.7, and nobody knows of later ones.
_LOOKS_PLACE_BY_PLACE = celery.VERSION[:2] == (5, 7)


def setting(conf: Any, name: str) -> Any:
    """A setting of Celery as it is now, where it is asked for with each result.

    ``conf[name]`` takes as long as a small result is encoded in: it makes the other names of a setting anew each time.
    """
    for mapping in conf.maps if _LOOKS_PLACE_BY_PLACE else ():
        for each in _names_of(name, conf.prefix, conf._keys):
            if each in mapping:
                return mapping[each]
    return conf[name]


@lru_cache(maxsize=64)
def _names_of(name: str, prefix: str | None, others: tuple[Callable[[str], str], ...] | None) -> tuple[str, ...]:
    return tuple(ConfigurationView({}, keys=others, prefix=prefix)._to_keys(name))


# -- tasks and requests


def current_task() -> Any:
    """The task that this thread runs, ``None`` outside of one."""
    return get_current_task()


@contextmanager
def sending_as(task: Any, **request: Any) -> Iterator[None]:
    """What is sent in here has this request of ``task`` for its parent."""
    task.push_request(**request)
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


def publish(app: Any, send: Callable[..., Any], *args: Any) -> Any:
    """Send a message by Celery's own retries, which 5.4 does not have."""
    retry = getattr(app.amqp, "_retry_publish", None)
    return retry(send, *args) if retry is not None else send(*args)


def reply_to_of(app: Any) -> str:
    """What the messages that this thread sends, and signatures that it freezes, have for `reply_to`."""
    return str(app.thread_oid)


def set_reply_to(app: Any, address: str) -> None:
    """Let them have another one; empty: Celery's own."""
    app._local.__dict__.pop("oid", None)
    if address:
        app._local.oid = address


def is_chain(signature: Any) -> bool:
    """Whether a signature is a chain."""
    return isinstance(signature, canvas._chain)


#: Tells the broker what becomes of a message.
Settle = Callable[[], None]


def hold_back(request: Any, settle: Callable[[Settle, Settle], None]) -> None:
    """From now on ``settle`` decides when a received task's message is acknowledged, or rejected for good.

    Arguments:
        request: a :class:`celery.worker.request.Request`, as the signal ``task_received`` brings it.
        settle: called where Celery would have done it, with what does it, and with what returns the message to its
            queue instead; it calls one of them, once, now or later, in any thread.
    """
    ack, reject = request._on_ack, request._on_reject

    def on_ack(logger: Any, errors: Any) -> None:
        settle(lambda: ack(logger, errors), lambda: reject(logger, errors, True))

    def on_reject(logger: Any, errors: Any, requeue: bool) -> None:
        if requeue:
            reject(logger, errors, True)
        else:
            settle(lambda: reject(logger, errors, False), lambda: reject(logger, errors, True))

    request._on_ack, request._on_reject = on_ack, on_reject


def settled_by_result() -> bool:
    """Whether Celery settles a message because of what the task's own process has sent it, when called below that.

    Otherwise it does because of what it has found out by itself: that the process was lost, or its time is over.
    """
    return _caller("celery.worker.request", "on_success") is not None


def run_what_is_due(consumer: Any) -> None:
    """Settle the messages that a worker's event loop would have settled, had it not ended.

    Arguments:
        consumer: the worker's :class:`celery.worker.consumer.Consumer`.
    """
    for each in consumer.hub._pop_ready() if consumer.hub else ():
        each()


def asks_before_writing() -> bool:
    """Whether a worker asks for a task's state only to decide if it stores REVOKED or FAILURE for it.

    Celery 5.7 asks so for every id that is revoked by remote control, and for the rest of a chain that has failed.
    """
    callers = _caller("celery.worker.control", "_revoke"), _caller("celery.backends.base", "_fail_chain")
    return any(callers)


def _caller(module: str, function: str) -> FrameType | None:
    """The frame of a function of Celery's that has called a hook, a few calls below."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(10):
        if frame is None:
            return None
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return frame
        frame = frame.f_back
    return None


# -- results


def parents_of(result: ResultBase) -> Iterator[Any]:
    """The results before this one in its chain, the nearest first; a header's is a GroupResult."""
    node = result.parent
    while node:
        yield node
        node = node.parent


def known_meta(result: Any) -> dict[str, Any] | None:
    """The final meta that a result keeps, ``None`` where it has none yet."""
    found: dict[str, Any] | None = result._cache
    return found


def keep_meta(result: Any, meta: dict[str, Any]) -> None:
    """Let a result keep a meta, if it is final."""
    result._maybe_set_cache(meta)


_THEN = AsyncResult.then.__code__


def called_by_then() -> bool:
    """Whether somebody's ``then()`` has made a result pending, when called in that hook.

    ``get()`` makes it so, too; and so does every ``ResultSet``, which subscribes to its members whether or not anybody
    subscribes to it.
    """
    asking = sys._getframe(2)
    return asking.f_code is _THEN and not isinstance(asking.f_locals["callback"], barrier)


class Joined(NamedTuple):
    """How the values of a group are wanted.

    Attributes:
        callback: the caller's gets each value, and nobody a list of them.
        propagate: a failure is raised.
    """

    callback: bool = False
    propagate: bool = True


_JOIN = ResultSet.join_native.__code__


def how_joined() -> Joined:
    """What ``ResultSet.join_native`` was told and does not tell ``iter_native``, when called in that hook.

    It is read off the call stack; the defaults where somebody else asks.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == AsyncResult.__module__:
        if frame.f_code is _JOIN:
            return Joined(bool(frame.f_locals["callback"]), bool(frame.f_locals["propagate"]))
        frame = frame.f_back
    return Joined()


class AskingGroup(NamedTuple):
    """A group that is asking its members for their states.

    Attributes:
        group: the outermost one, where groups are in groups.
        method: its method that asks.
        everyone: it asks every member; else the first one that is not ready ends it.
    """

    group: ResultSet
    method: str
    everyone: bool


class ParentCheck(NamedTuple):
    """A result whose parents Celery is checking.

    Attributes:
        waited: the result.
        timeout: that its ``get()`` was given, in seconds; ``None`` on an interval, where ``get()`` does not stand
            right above the check.
    """

    waited: AsyncResult
    timeout: float | None


_CHECK = AsyncResult._maybe_reraise_parent_error.__code__
_GET = AsyncResult.get.__code__
_ASKS_EVERYONE = {ResultSet.completed_count.__code__, ResultSet.failed.__code__}
_ASKS_IN_ORDER = {ResultSet.ready.__code__, ResultSet.successful.__code__, ResultSet.waiting.__code__}


def who_asks() -> ParentCheck | AskingGroup | None:
    """Because of which result Celery asks for the meta of another one, when called in a hook that answers it.

    A result whose parents are checked: ``AsyncResult.get()`` asks for every one before it waits and on each interval.
    A group whose method asks its members. ``None`` where somebody asks for that very meta. Celery gives no word of
    it: it is read off the call stack.
    """
    group: AskingGroup | None = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == AsyncResult.__module__:
        code = frame.f_code
        if code is _CHECK:
            get = frame.f_back
            called = get is not None and get.f_code is _GET
            return ParentCheck(frame.f_locals["self"], get.f_locals["timeout"] if get and called else None)
        if code in _ASKS_EVERYONE or code in _ASKS_IN_ORDER:
            group = AskingGroup(frame.f_locals["self"], code.co_name, code in _ASKS_EVERYONE)
        frame = frame.f_back
    return group


#: Where Celery keeps a meta that it was given: it makes results of the children, whoever may want them.
_KEEPING = AsyncResult._set_cache.__code__
#: Where it looks for those results.
_TELLING = AsyncResult.children.fget.__code__


def who_asks_for_children() -> Literal["keeping", "telling", ""]:
    """Why a meta's ``get("children")``, which calls this, was called: by whom in Celery, empty for anybody else.

    ``keeping``: an AsyncResult was given the meta, and makes results of the children before anybody wants them.
    ``telling``: somebody asks the AsyncResult for its children.
    """
    asking = sys._getframe(2).f_code
    return "keeping" if asking is _KEEPING else "telling" if asking is _TELLING else ""


# -- serializers


#: Kombu's decoders by content type and encoders by name, those that are registered later too; kombu has no public way
#: to ask.
DECODERS: Mapping[str, Callable[..., Any]] = registry._decoders
ENCODERS: Mapping[str, Any] = registry._encoders


#: Where a chord is applied.
_APPLYING = canvas._chord.run.__code__


def generated_header() -> Any | None:
    """The header's tasks of the chord that is being applied, where a generator makes them; called in `apply_chord`.

    They are made as Celery asks for them, one after the other; ``map(fn)`` lets ``fn`` see each before it is sent.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(10):
        if frame is None:
            return None
        if frame.f_code is _APPLYING:
            tasks = frame.f_locals["header"].tasks
            return tasks if isinstance(tasks, _regen) else None
        frame = frame.f_back
    return None


#: Celery before 5.6 gives all of a header the index that the chord itself has in an outer one.
NUMBERS_HEADERS = celery.VERSION >= (5, 6)
