"""The meta of a large result, of which only the state has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from celery_s3.celery_private import who_asks_for_children

__all__ = ["LazyMeta", "is_partial"]


def is_partial(meta: Mapping[str, Any] | None) -> TypeGuard[LazyMeta]:
    """Whether the body of this meta has not been fetched yet."""
    return isinstance(meta, LazyMeta) and meta.partial


class LazyMeta(dict[str, Any]):
    """The meta of a large result: its state is known, the rest is fetched when somebody asks for it.

    What a caller sets stays: Celery replaces ``children`` by result objects, and asks for them whenever it is given a
    meta. That is no reason to fetch a large body.

    Arguments:
        known: the part of the meta that is known, its ``status`` at least.
        load: fetches the whole meta; what it raises is raised to whoever asked, and it is called again by the next.
        size: the bytes of its object.
        to_result: makes a result of a child as it is stored.
        kept: called when an AsyncResult keeps this meta, perhaps for long: to let go of what ``load`` can do without.
    """

    def __init__(
        self,
        known: Mapping[str, Any],
        load: Callable[[], Mapping[str, Any]],
        size: int = 0,
        to_result: Callable[[Any], Any] = lambda child: child,
        kept: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(known)
        self._kept = kept
        self.size = size
        self._to_result = to_result
        self._load: Callable[[], Mapping[str, Any]] | None = load

    @property
    def partial(self) -> bool:
        """Whether the body has not been fetched yet."""
        return self._load is not None

    def whole(self) -> LazyMeta:
        """Fetch the rest, if that has not been done."""
        load = self._load  # read once: another thread may set it to None between two looks
        if load is not None:
            rest = load()
            if "status" in rest:  # a state that was not final may have changed since it was read
                super().__setitem__("status", rest["status"])
            for name, value in rest.items():
                super().setdefault(name, value)
            self._load = None
        return self

    def __missing__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict, with the one exception of Celery's own question for the children, see :class:`LazyMeta`."""
        if name == "children":
            asking, known = who_asks_for_children(), super().__contains__(name)
            if asking == "keeping":
                self._kept()
                return self[name] if known else default
            if asking == "telling" and not known and (children := self[name]):
                self[name] = [self._to_result(child) for child in children]
        return self[name] if name in self else default  # noqa: SIM401 (dict's own would not load)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or super(LazyMeta, self.whole()).__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return super(LazyMeta, self.whole()).__iter__()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return super(LazyMeta, self.whole()).__len__()

    def keys(self) -> Any:
        """Of the whole meta, which is fetched."""
        return super(LazyMeta, self.whole()).keys()

    def values(self) -> Any:
        """Of the whole meta, which is fetched."""
        return super(LazyMeta, self.whole()).values()

    def items(self) -> Any:
        """Of the whole meta, which is fetched."""
        return super(LazyMeta, self.whole()).items()

    def __reversed__(self) -> Iterator[str]:
        return super(LazyMeta, self.whole()).__reversed__()

    def pop(self, *args: Any) -> Any:
        """Of the whole meta, which is fetched."""
        return super(LazyMeta, self.whole()).pop(*args)

    def popitem(self) -> tuple[str, Any]:
        """Of the whole meta, which is fetched."""
        return super(LazyMeta, self.whole()).popitem()

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Of the whole meta, which is fetched."""
        return super(LazyMeta, self.whole()).setdefault(name, default)

    def clear(self) -> None:
        """Empty it; nothing is fetched for that, nor later."""
        self._load = None
        super().clear()

    def copy(self) -> dict[str, Any]:
        """The whole meta, which is fetched, as a plain dict."""
        return dict(self.items())

    def __delitem__(self, name: str) -> None:
        super(LazyMeta, self.whole()).__delitem__(name)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        return super(LazyMeta, self.whole()).__eq__(other)

    def __ne__(self, other: object) -> bool:
        return super(LazyMeta, self.whole()).__ne__(other)

    __hash__ = None

    def __repr__(self) -> str:
        return super().__repr__() if self._load is None else f"<{super().__repr__()} and a body not fetched yet>"

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)
