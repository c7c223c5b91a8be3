"""The backend that is examined, and the objects that the examination leaves behind for a moment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from celery_s3.errors import StoreError
from celery_s3.expiry.rules import Rule
from celery_s3.expiry.terms import Terms
from celery_s3.keys import DOCTOR, Layout
from celery_s3.notices import Notices
from celery_s3.settings import Settings
from celery_s3.store.api import Store
from celery_s3.store.clients.control import Control

__all__ = ["Case", "Scratch"]

#: What an examination that was killed has left is removed by a later one.
_LEFT = timedelta(hours=1)


class Scratch:
    """The scratch objects of one examination, under names that no other one uses."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self.store = store
        self.layout = layout
        self.folder = layout.prefix(DOCTOR)
        self._run = uuid4().hex
        self._keys: dict[str, None] = {}

    def key(self, name: str) -> str:
        """A key to write to; it is deleted in the end, whether it was written or not."""
        key = self.unwritten(name)
        self._keys[key] = None
        return key

    def forget(self, key: str) -> None:
        """Nothing was written there: it is not deleted in the end."""
        self._keys.pop(key, None)

    def unwritten(self, name: str) -> str:
        """A key that nobody ever writes to."""
        return self.layout.doctor_key(self._run, name)

    def adopt(self, key: str, modified: datetime) -> None:
        """Delete this one too if an examination that is long over has left it."""
        if datetime.now(UTC) - modified > _LEFT:
            self._keys[key] = None

    def clear(self) -> list[str]:
        """Delete what was written; the keys for which that failed."""
        for key in list(self._keys):
            with suppress(StoreError):
                self.store.delete(key)
                del self._keys[key]
        return list(self._keys)


@dataclass(slots=True)
class Case:
    """What the steps look at.

    Attributes:
        store: makes each request once, with the client that the settings choose: nothing is tried again or hidden.
        layout, terms: what is where, and expires when.
        rules: the lifecycle rules that there should be, for a bucket that keeps versions or not.
        notices: tells who waits; ``None``: it is not asked.
        scratch: where to write.
        object: the key of the scratch object.
        body: what was written to it; ``None`` before that, and where it was refused.
    """

    settings: Settings
    store: Store
    control: Control
    layout: Layout
    terms: Terms
    rules: Callable[[bool], list[Rule]]
    notices: Notices | None = None
    scratch: Scratch = field(init=False)
    object: str = ""
    body: bytes | None = None

    def __post_init__(self) -> None:
        self.scratch = Scratch(self.store, self.layout)
