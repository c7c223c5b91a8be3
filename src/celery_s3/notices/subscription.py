"""Who waits for notices, in the thread that waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Protocol

from celery_s3.store.api import Object

from .notice import Notice

__all__ = ["Hearing", "Subscription"]


class Hearing(Protocol):
    """Who hears, for all who wait in this process."""

    @property
    def trusted(self) -> bool:
        """Whether what is stored is told at all."""

    @property
    def may_confirm(self) -> bool:
        """Whether keys that are not confirmed may be soon."""

    def add(self, subscription: Subscription, keys: Collection[str]) -> None:
        """Let somebody hear of these keys, too."""

    def discard(self, subscription: Subscription, keys: Collection[str]) -> None:
        """Let somebody hear no more of these keys."""

    def missed(self) -> None:
        """A result was there, and no notice of it."""


class Subscription:
    """What one waiter wants to be told of; a context manager, which ends it.

    Arguments:
        listener: hears; ``None`` where nothing can be heard here.
        key_of: the key of a task's result.
    """

    def __init__(self, listener: Hearing | None = None, key_of: Callable[[str], str] = str) -> None:
        self._listener = listener
        self._key_of = key_of
        self._event = threading.Event()
        #: ids by key
        self._ids: dict[str, str] = {}
        #: keys for which a notice is wanted and may not come: not confirmed, or the task does not know our address
        self._unsure: set[str] = set()
        #: those among all keys that would be in there
        self._expected: set[str] = set()
        self._news: deque[str] = deque()
        self._sure_now: deque[str] = deque()
        self._stored: dict[str, Object] = {}
        #: how often the line has broken
        self.breaks = 0

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it is about

    def add(self, ids: Iterable[str], *, expected: bool = True) -> None:
        """Want to be told of these, too.

        Arguments:
            expected: where no notice of them may come, too, there is no relying on notices.
        """
        if self._listener is None:
            return
        new: dict[str, str] = {}
        for id in ids:
            with suppress(ValueError):  # an id that makes no key: asking for it tells
                new[self._key_of(id)] = id
        new = {key: id for key, id in new.items() if key not in self._ids}
        self._ids |= new
        if expected:
            self._expected |= new.keys()
            self._unsure |= new.keys()
        self._listener.add(self, new.keys())

    def discard(self, id: str) -> None:
        """Want to be told of this no more."""
        if self._listener is not None:
            self._drop({key for key in (self._key_of(id),) if key in self._ids})

    def close(self) -> None:
        """Want to be told of nothing more."""
        self._drop(set(self._ids))

    def _drop(self, keys: set[str]) -> None:
        for key in keys:
            del self._ids[key]
            self._stored.pop(key, None)
        self._expected -= keys
        self._unsure -= keys
        if self._listener is not None and keys:
            self._listener.discard(self, keys)

    # -- for who waits

    @property
    def hears(self) -> bool:
        """Whether anything can be heard here at all."""
        return self._listener is not None

    @property
    def listening(self) -> bool:
        """Whether a notice of each is to be expected: looking seldom is enough."""
        return self._listener is not None and not self._unsure and self._listener.trusted

    def sure_of(self, id: str) -> bool:
        """As :attr:`listening`, of one task."""
        return self._listener is not None and self._key_of(id) not in self._unsure and self._listener.trusted

    @property
    def may_be_sure(self) -> bool:
        """Whether what is not sure may be so in a moment."""
        return self._listener is not None and self._listener.may_confirm

    def get_ready(self, seconds: float) -> None:
        """Wait, but not longer than this, until what is stored from now on will be told."""
        end = time.monotonic() + seconds
        while self._unsure and self.may_be_sure and (left := end - time.monotonic()) > 0:
            self._event.wait(left)
            self._event.clear()
        self._event.clear()  # whoever waited for this looks now, whatever has come

    def wait(self, seconds: float) -> None:
        """Wait for so many seconds, or until there is a reason to look."""
        if self._event.wait(seconds):
            self._event.clear()

    def wake(self) -> None:
        """Give whoever waits a reason to look."""
        self._event.set()

    def news(self) -> list[str]:
        """The ids of which there was a notice since this was asked last."""
        return _drained(self._news)

    def sure_now(self) -> list[str]:
        """The ids of which every notice comes, since this was asked last: one may have come before."""
        return _drained(self._sure_now)

    def take(self, id: str) -> Object | None:
        """The object of a task, if its bytes came along with a notice: once."""
        return self._stored.pop(self._key_of(id), None) if self._stored else None

    def missed(self) -> None:
        """A result was there, and no notice of it."""
        if self._listener is not None and self.listening:
            self._listener.missed()

    # -- for the listener, in its thread or with its lock

    def confirmed(self, key: str) -> None:
        """Notices of this key come from now on."""
        id = self._ids.get(key)
        if id is not None:
            self._unsure.discard(key)
            self._sure_now.append(id)
            self._event.set()

    def heard(self, notice: Notice) -> None:
        """A notice has come."""
        id = self._ids.get(notice.key)
        if id is not None:
            if notice.stored is not None:
                self._stored[notice.key] = notice.stored
            self._news.append(id)
            self._event.set()

    def broken(self) -> None:
        """Nothing is heard for now: whoever waits polls."""
        self._unsure |= self._expected
        self.breaks += 1
        self._event.set()


def _drained(queue: deque[str]) -> list[str]:
    found = []
    while queue:
        found.append(queue.popleft())
    return found
