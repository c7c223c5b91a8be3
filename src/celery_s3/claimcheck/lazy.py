"""The arguments of a message that has a pointer in their place: fetched where a task uses them.

Celery decodes every message in the worker's main process, and looks at it there. An error would lose the task, and a
request would hold up the event loop: so outside of a task nothing is fetched, and one :class:`Unfetched` stands in the
place of all arguments. Inside of a task the first look at a list or mapping of arguments fetches it; that is the call
of the task's function, where an error is the task's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from celery import states
from celery.app import app_or_default
from celery.exceptions import Ignore, TaskPredicate

from celery_s3.celery_private import current_task
from celery_s3.errors import CeleryS3Error, MessageNotRead, ObjectMissing
from celery_s3.interruptions import brief, reraise_interruption

from .content import decode
from .messages import is_removable, messages_of, sending_app

__all__ = [
    "LazyArgs",
    "LazyKwargs",
    "StoredArguments",
    "Unfetched",
    "args_as_they_are",
    "kwargs_as_they_are",
]

_C = TypeVar("_C", bound=type)


class StoredArguments:
    """What a pointer stands for: arguments and keyword arguments, fetched once, when somebody asks for either.

    Arguments:
        pointer: as it stood in the message; anything, where it is damaged.
        inner: kombu's name of the serializer that encoded them.
    """

    def __init__(self, pointer: object, inner: str) -> None:
        self.pointer: Mapping[str, Any] = pointer if isinstance(pointer, Mapping) else {}
        self.inner = inner
        self._fetched: tuple[list[Any], dict[str, Any]] | None = None
        self._error: Exception | None = None

    def lazily(self) -> dict[str, Any]:
        """``args`` and ``kwargs`` to stand in a message: a list and a dict that fetch what should be in them."""
        return {
            "args": LazyArgs(self) if self.pointer.get("args", True) else [],
            "kwargs": LazyKwargs(self) if self.pointer.get("kwargs", True) else {},
        }

    def are_all_of(self, args: list[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a call with these has all of the stored arguments, unfetched, and no other."""
        given = [one for one, there in (("args", args), ("kwargs", kwargs)) if there]
        values = [*args, *kwargs.values()]
        return (
            len(values) == len(given)
            and all(type(one) is Unfetched and one.stored is self for one in values)
            and given == [one for one in ("args", "kwargs") if self.pointer.get(one)]
        )

    @property
    def args(self) -> list[Any]:
        """The positional arguments.

        Raises:
            MessageNotRead: they could not be fetched, or are not what was stored.
            celery.exceptions.Ignore: they are removed, since their task has succeeded.
        """
        return self._fetch_once()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments; errors as of :attr:`args`."""
        return self._fetch_once()[1]

    @property
    def object(self) -> str:
        """The name of the object that holds them, empty where the pointer is damaged."""
        return str(self.pointer.get("object", ""))

    def _fetch_once(self) -> tuple[list[Any], dict[str, Any]]:
        if self._error is not None:
            raise self._error
        if self._fetched is None:
            try:
                self._fetched = self._fetch()
            except (CeleryS3Error, TaskPredicate) as exc:
                self._error = exc
                self._show_text_in(current_task())
                raise
        return self._fetched

    def _fetch(self) -> tuple[list[Any], dict[str, Any]]:
        task = current_task()
        messages = messages_of(app_or_default(task and task.app))
        try:
            content = messages.get(self.object, str(self.pointer.get("at", "")))
        except MessageNotRead as exc:
            if isinstance(exc.__cause__, ObjectMissing) and is_removable(self.object) and _has_succeeded(task):
                raise Ignore("the task has succeeded already, and its arguments are removed") from None
            raise
        handled = sys.exception()
        try:
            args, kwargs = decode(content, self.inner)
            return list(args), dict(kwargs)
        except Exception as exc:  # every serializer has errors of its own
            reraise_interruption(exc, handled)
            raise MessageNotRead(f"{self} cannot be decoded: {brief(exc)}") from exc

    def _show_text_in(self, task: Any) -> None:
        """Put a text in the place of the arguments of a task that fails.

        Who handles the failure, and who stores it with `result_extended`, would otherwise fetch them once more.
        """
        request = task and task.request
        if request and getattr(request.args, "stored", None) is self:
            request.args = args_as_they_are(request.args)
        if request and getattr(request.kwargs, "stored", None) is self:
            request.kwargs = kwargs_as_they_are(request.kwargs)

    def __str__(self) -> str:
        size = self.pointer.get("size")
        return f"{size:,} bytes of arguments in S3" if isinstance(size, int) else "arguments in S3"

    def __reduce__(self) -> Any:
        return StoredArguments, (dict(self.pointer), self.inner)


class Unfetched:
    """What stands in the place of all arguments, or of all keyword arguments, until they are fetched."""

    __slots__ = ("stored",)

    def __init__(self, stored: StoredArguments) -> None:
        self.stored = stored

    def __repr__(self) -> str:
        return f"<{self.stored}>"

    def __deepcopy__(self, memo: object) -> Unfetched:
        return self

    def __json__(self) -> str:
        """A text for kombu's JSON: for ``celery inspect`` and stored failures.

        Raises:
            TypeError: a message is made of it, whose reader would take the text for the argument.
        """
        if sending_app.get() is not None:
            raise TypeError(
                f"{self!r} cannot be sent like this: send a task its arguments as a whole, by a serializer 's3+…', or"
                " look at them in a task first"
            )
        return repr(self)

    def __reduce__(self) -> Any:
        return str, (self.__json__(),)


def _has_succeeded(task: Any) -> bool:
    return bool(task) and task.backend.get_state(task.request.id) == states.SUCCESS


def _fetching_first(base: type, names: str) -> Callable[[_C], _C]:
    """A class decorator: these methods of a list or dict fetch what should be in it first, inside of a task."""

    def method(name: str) -> Callable[..., Any]:
        plain = getattr(base, name)

        def after_fetching(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.stored is not None and current_task() is not None:
                self.fetch()
            return plain(self, *args, **kwargs)

        after_fetching.__name__ = name
        return after_fetching

    def decorate(cls: _C) -> _C:
        for name in names.split():
            setattr(cls, name, method(name))
        return cls

    return decorate


@_fetching_first(
    list,
    "__add__ __contains__ __delitem__ __ge__ __getitem__ __gt__ __iadd__ __imul__ __iter__ __le__ __len__ __lt__"
    " __mul__ __reversed__ __rmul__ __setitem__ append clear copy count extend index insert pop remove reverse sort",
)
class LazyArgs(list[Any]):
    """Positional arguments.

    It is a list, since Celery sends nothing else. What reads a list's memory and calls none of its methods, as
    ``[1] + args`` does, finds the :class:`Unfetched` in it: arguments are never lost to an empty list.

    Attributes:
        stored: what is to be fetched, ``None`` once it is.
        object: the name of the object that they come from, fetched or not.
    """

    def __init__(self, stored: StoredArguments) -> None:
        super().__init__([Unfetched(stored)])
        self.stored: StoredArguments | None = stored
        self.object = stored.object

    def fetch(self) -> None:
        """Put the arguments in their place, once; errors as of :attr:`StoredArguments.args`."""
        if self.stored is not None:
            list.__setitem__(self, slice(None), self.stored.args)
            self.stored = None

    # list.__eq__ would compare both lists without fetching. For another type nothing is fetched: Celery compares the
    # arguments of each message with a text.
    def __eq__(self, other: object) -> bool:
        if isinstance(other, list):
            return [*self] == [*other]
        return NotImplemented

    __ne__ = object.__ne__  # by __eq__

    def __reduce_ex__(self, protocol: object) -> Any:
        return (LazyArgs, (self.stored,)) if self.stored is not None else (list, ([*self],))


@_fetching_first(
    dict,
    "__contains__ __delitem__ __getitem__ __ior__ __iter__ __len__ __or__ __reversed__ __ror__ __setitem__ clear copy"
    " get items keys pop popitem setdefault update values",
)
class LazyKwargs(dict[str, Any]):
    """Keyword arguments; attributes as of :class:`LazyArgs`."""

    def __init__(self, stored: StoredArguments) -> None:
        super().__init__({"celery_s3": Unfetched(stored)})
        self.stored: StoredArguments | None = stored
        self.object = stored.object

    def fetch(self) -> None:
        """Put the keyword arguments in their place, once; errors as of :attr:`StoredArguments.args`."""
        if self.stored is not None:
            kwargs = self.stored.kwargs
            dict.clear(self)
            dict.update(self, kwargs)
            self.stored = None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dict):
            return dict(self.items()) == dict(other.items())
        return NotImplemented

    __ne__ = object.__ne__

    def __reduce_ex__(self, protocol: object) -> Any:
        return (LazyKwargs, (self.stored,)) if self.stored is not None else (dict, (dict(self.items()),))


def args_as_they_are(args: Any) -> list[Any]:
    """A copy of what stands in positional arguments now: nothing is fetched."""
    return list.copy(args) if isinstance(args, list) else list(args or ())


def kwargs_as_they_are(kwargs: Any) -> dict[str, Any]:
    """A copy of what stands in keyword arguments now: nothing is fetched."""
    return dict(dict.items(kwargs)) if isinstance(kwargs, dict) else dict(kwargs or {})
