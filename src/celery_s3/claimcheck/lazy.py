"""The arguments of a message that has a pointer in their place: fetched where a task uses them.

Celery decodes every message in the worker's main process, and looks at it there. An error would lose the task, and a
request would hold up the event loop: so outside of a task nothing is fetched, and one :class:`Unfetched` stands in the
place of all arguments. Inside of one the first look at a list or mapping of arguments fetches it; that is the call of
the task's function, where an error is the task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from celery import states
from celery.app import app_or_default
from celery.exceptions import Ignore, TaskPredicate

from celery_s3.celery_private import current_task
from celery_s3.errors import CeleryS3Error, MessageNotRead, ObjectMissing
from celery_s3.interruptions import INTRUDERS, brief, passing

from .content import decoded
from .messages import is_removable, messages_of, sending_app

__all__ = [
    "Claim",
    "LazyArgs",
    "LazyKwargs",
    "Unfetched",
    "raw_args",
    "raw_kwargs",
]

_C = TypeVar("_C", bound=type)


class Claim:
    """What a pointer points to: arguments and keyword arguments.

    Arguments:
        pointer: as it stood in the message.
        inner: the name of the serializer that encoded them.
    """

    def __init__(self, pointer: object, inner: str) -> None:
        self.pointer: Mapping[str, Any] = pointer if isinstance(pointer, Mapping) else {}
        self.inner = inner
        self._content: tuple[list[Any], dict[str, Any]] | None = None
        self._error: Exception | None = None

    def arguments(self) -> dict[str, Any]:
        """``args`` and ``kwargs`` to stand in a message."""
        return {
            "args": LazyArgs(self) if self.pointer.get("args", True) else [],
            "kwargs": LazyKwargs(self) if self.pointer.get("kwargs", True) else {},
        }

    def stands_for(self, args: list[Any], kwargs: dict[str, Any]) -> bool:
        """Whether these are all of its arguments and keyword arguments, and nothing else."""
        whole = [one for one, there in (("args", args), ("kwargs", kwargs)) if there]
        here = [*args, *kwargs.values()]
        return (
            len(here) == len(whole)
            and all(type(one) is Unfetched and one.claim is self for one in here)
            and whole == [one for one in ("args", "kwargs") if self.pointer.get(one)]
        )

    @property
    def args(self) -> list[Any]:
        return self._fetched()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        return self._fetched()[1]

    @property
    def object(self) -> str:
        return str(self.pointer.get("object", ""))

    def _fetched(self) -> tuple[list[Any], dict[str, Any]]:
        if self._error is not None:
            raise self._error
        if self._content is None:
            try:
                self._content = self._fetch()
            except (CeleryS3Error, TaskPredicate) as exc:
                self._error = exc
                self._leave_request(current_task())
                raise
        return self._content

    def _fetch(self) -> tuple[list[Any], dict[str, Any]]:
        task = current_task()
        messages = messages_of(app_or_default(task and task.app))
        try:
            content = messages.get(self.object, str(self.pointer.get("at", "")))
        except MessageNotRead as exc:
            if isinstance(exc.__cause__, ObjectMissing) and is_removable(self.object) and _has_succeeded(task):
                raise Ignore("the task has succeeded already, and its arguments are removed") from None
            raise
        try:
            with passing():
                args, kwargs = decoded(content, self.inner)
                return list(args), dict(kwargs)
        except INTRUDERS:
            raise
        except Exception as exc:  # every serializer has errors of its own
            raise MessageNotRead(f"{self} cannot be decoded: {brief(exc)}") from exc

    def _leave_request(self, task: Any) -> None:
        """Let those who handle the failure, and store it with `result_extended`, see a text for the arguments."""
        request = task and task.request
        if request and getattr(request.args, "claim", None) is self:
            request.args = raw_args(request.args)
        if request and getattr(request.kwargs, "claim", None) is self:
            request.kwargs = raw_kwargs(request.kwargs)

    def __str__(self) -> str:
        size = self.pointer.get("size")
        return f"{size:,} bytes of arguments in S3" if isinstance(size, int) else "arguments in S3"

    def __reduce__(self) -> Any:
        return Claim, (dict(self.pointer), self.inner)


class Unfetched:
    """What stands in the place of all arguments, or of all keyword arguments, until they are fetched."""

    __slots__ = ("claim",)

    def __init__(self, claim: Claim) -> None:
        self.claim = claim

    def __repr__(self) -> str:
        return f"<{self.claim}>"

    def __deepcopy__(self, memo: object) -> Unfetched:
        return self

    def __json__(self) -> str:
        """A text: for ``celery inspect`` and stored failures.

        Raises:
            TypeError: a message is made of it.
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


def _first_fetched(base: type, names: str) -> Callable[[_C], _C]:
    """Let these methods of a list or dict fetch what should be in it first."""

    def method(name: str) -> Callable[..., Any]:
        plain = getattr(base, name)

        def after_fetching(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.claim is not None and current_task() is not None:
                self.fetch()
            return plain(self, *args, **kwargs)

        after_fetching.__name__ = name
        return after_fetching

    def decorate(cls: _C) -> _C:
        for name in names.split():
            setattr(cls, name, method(name))
        return cls

    return decorate


@_first_fetched(
    list,
    "__add__ __contains__ __delitem__ __ge__ __getitem__ __gt__ __iadd__ __imul__ __iter__ __le__ __len__ __lt__"
    " __mul__ __reversed__ __rmul__ __setitem__ append clear copy count extend index insert pop remove reverse sort",
)
class LazyArgs(list[Any]):
    """Positional arguments.

    It is a list, since Celery sends nothing else. What reads a list's memory, as ``[1] + args`` does, finds the
    :class:`Unfetched` in it: arguments are never lost to an empty list.
    """

    def __init__(self, claim: Claim) -> None:
        super().__init__([Unfetched(claim)])
        self.claim: Claim | None = claim
        self.object = claim.object

    def fetch(self) -> None:
        if self.claim is not None:
            list.__setitem__(self, slice(None), self.claim.args)
            self.claim = None

    def __eq__(self, other: object) -> bool:
        # Celery looks for the text 'args' in every message
        if isinstance(other, list):
            return [*self] == [*other]
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other if isinstance(other, list) else NotImplemented

    __hash__ = None

    def __reduce_ex__(self, protocol: object) -> Any:
        return (LazyArgs, (self.claim,)) if self.claim is not None else (list, ([*self],))


@_first_fetched(
    dict,
    "__contains__ __delitem__ __getitem__ __ior__ __iter__ __len__ __or__ __reversed__ __ror__ __setitem__ clear copy"
    " get items keys pop popitem setdefault update values",
)
class LazyKwargs(dict[str, Any]):
    """Keyword arguments."""

    def __init__(self, claim: Claim) -> None:
        super().__init__({"celery_s3": Unfetched(claim)})
        self.claim: Claim | None = claim
        self.object = claim.object

    def fetch(self) -> None:
        if self.claim is not None:
            kwargs = self.claim.kwargs
            dict.clear(self)
            dict.update(self, kwargs)
            self.claim = None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dict):
            return dict(self.items()) == dict(other.items())
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other if isinstance(other, dict) else NotImplemented

    __hash__ = None

    def __reduce_ex__(self, protocol: object) -> Any:
        return (LazyKwargs, (self.claim,)) if self.claim is not None else (dict, (dict(self.items()),))


def raw_args(args: Any) -> list[Any]:
    """What stands there now, without fetching."""
    return list.copy(args) if isinstance(args, list) else list(args or ())


def raw_kwargs(kwargs: Any) -> dict[str, Any]:
    """What stands there now, without fetching."""
    return dict(dict.items(kwargs)) if isinstance(kwargs, dict) else dict(kwargs or {})
