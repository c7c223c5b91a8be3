"""Files that tasks return or get: where they go, what is known of them, and deleting them with their result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str

from .. import codec
from ..errors import ObjectMissing
from ..expiry.terms import Prefixes
from ..files.home import last_used, storing
from ..serializers import Pointed
from ..settings import Settings
from ..store.api import Object, Store, Writer
from ..store.parallel import Pool

# The rest is imported where it is used: most results have no files.
if TYPE_CHECKING:
    from ..files.store import Files

__all__ = ["FileHooks"]

#: The serializers that can hold a pointer to a file.
ABLE = ("json", "pickle", "typed+json")
REMEDY = "Set `result_serializer` to json, pickle or typed+json"
#: How many results a process remembers to have files, or none.
REMEMBERED = 4096


class FileHooks:
    """The part of the backend that knows of files; what it needs of the rest is declared here."""

    serializer: str
    settings: Settings
    store: Store
    uploads: Writer
    pool: Pool
    prefixes: Prefixes
    get_key_for_task: Callable[[str], str]
    _plain_store: Store
    _full: Callable[[str], str]

    def _open_files(self) -> None:
        #: whether results have files, for those that this process has read
        self._read: dict[str, bool] = {}
        #: how many files of a task this process has uploaded
        self._uploaded: dict[str, int] = {}

    @cached_property
    def files(self) -> Files:
        """The files of this backend's tasks."""
        from ..files.store import Files

        return Files(self.store, self.uploads, self.pool, self.settings, self.prefixes.files, self._uploaded)

    # -- which backend a file goes to, and comes from

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        last_used.set(self)
        return super().on_task_call(producer, task_id)  # type: ignore[misc]

    def apply_chord(self, *args: Any, **kwargs: Any) -> Any:
        last_used.set(self)
        return super().apply_chord(*args, **kwargs)  # type: ignore[misc]

    def _encode(self, data: Any) -> Any:
        id = data.get("task_id") if isinstance(data, dict) else None
        token = storing.set((self, id))
        try:
            return super()._encode(data)  # type: ignore[misc]
        except EncodeError as exc:
            if self.serializer not in ABLE and _has_file(data):
                raise EncodeError(f"{self.serializer} cannot hold an S3File: {exc}. {REMEDY}") from exc
            raise
        finally:
            storing.reset(token)

    def _noticed(self, id: str, found: Object) -> None:
        """What a result is read for, before it is decoded."""
        last_used.set(self)
        if codec.state_of(found.metadata) in states.READY_STATES:
            self._remember(id, codec.files_in(found.metadata) > 0)

    # -- deleting

    def _forget(self, task_id: str) -> None:
        """The files first: should this process die in between, the result can be forgotten again."""
        id = bytes_to_str(task_id)
        if self._has_files(id):
            self.files.delete(id)
        super()._forget(task_id)  # type: ignore[misc]

    def _has_files(self, id: str) -> bool:
        known = self._read.pop(id, None)
        return self._look(id) if known is None else known

    def _look(self, id: str) -> bool:
        try:
            found = self._plain_store.get(self._full(self.get_key_for_task(id)), length=1)
        except ObjectMissing:
            return False
        return codec.files_in(found.metadata) > 0

    def _remember(self, id: str, has_files: bool) -> None:
        # no lock: a forked child might wait for it for ever
        self._read.pop(id, None)
        self._read[id] = has_files
        if len(self._read) > REMEMBERED:
            with suppress(RuntimeError, StopIteration):  # another thread makes room at the same time
                self._read.pop(next(iter(self._read)), None)


def _has_file(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_file, value.values()))
    return isinstance(value, Pointed) or (isinstance(value, list | tuple | set) and any(map(_has_file, value)))
