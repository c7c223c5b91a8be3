"""Files that tasks return or get: where they go, what is known of them, and deleting them with their result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str

from celery_s3.errors import AccessDenied, ObjectMissing, StoreError, Transient
from celery_s3.keys import Layout
from celery_s3.metadata import files_in, state_of
from celery_s3.serializers import Pointed
from celery_s3.settings import Settings
from celery_s3.store.api import Object, Store, Writer
from celery_s3.store.parallel import Pool

from .whose import last_used, sending, storing

# The rest is imported where it is used: most results have no files.
if TYPE_CHECKING:
    from .store import Files

__all__ = ["FileHooks", "transient"]

#: The serializers that can hold a pointer to a file.
ABLE = ("json", "pickle", "typed+json")
REMEDY = "Set `result_serializer` to json, pickle or typed+json"
#: In place of a number of files, for a result that this process has not read.
UNREAD = -1
#: How many results a process remembers to have files, or none.
REMEMBERED = 4096


class FileHooks:
    """The part of the backend that knows of files; what it needs of the rest is declared here."""

    serializer: str
    settings: Settings
    store: Store
    uploads: Writer
    pool: Pool
    layout: Layout
    get_key_for_task: Callable[[str], str]
    _plain_store: Store
    _full: Callable[[str], str]

    def _open_files(self) -> None:
        #: how many files results have, as far as they tell, for those that this process has read
        self._read: dict[str, int | None] = {}
        #: how many files of a task this process has uploaded
        self._uploaded: dict[str, int] = {}

    @cached_property
    def files(self) -> Files:
        """The files of this backend's tasks."""
        from .store import Files

        return Files(self.store, self.uploads, self.pool, self.settings, self.layout.files, self._uploaded)

    def _files_so_far(self, id: str, *, rerun: bool) -> int | None:
        """How many files a task has uploaded; an earlier run may have done so in another process."""
        return None if rerun else self._uploaded.get(id, 0)

    # -- which backend a file goes to, and comes from

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        last_used.set(self)
        sending.set((self, task_id))
        return super().on_task_call(producer, task_id)  # type: ignore[misc]

    def apply_chord(self, *args: Any, **kwargs: Any) -> Any:
        last_used.set(self)
        sending.set((self, ""))
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
        if state_of(found.metadata) in states.READY_STATES:
            self._remember(id, files_in(found.metadata))

    # -- deleting

    def _forget(self, task_id: str) -> None:
        """The files first: should this process die in between, the result can be forgotten again."""
        id = bytes_to_str(task_id)
        if keys := self._files_of(id):
            self.store.delete_many(keys)
        super()._forget(task_id)  # type: ignore[misc]

    def _files_of(self, id: str) -> list[str]:
        count = self._read.pop(id, UNREAD)
        if count == UNREAD:
            count = self._look(id)
        if count == 0:
            return []
        try:
            return self.files.keys_of(id)
        except AccessDenied:
            if count is None:  # most such results have no files: to forget them takes no further permission
                return []
            raise

    def _look(self, id: str) -> int | None:
        try:
            found = self._plain_store.get(self._full(self.get_key_for_task(id)), length=1)
        except ObjectMissing:
            return 0
        return files_in(found.metadata)

    def _remember(self, id: str, files: int | None) -> None:
        # no lock: a forked child might wait for it for ever
        self._read.pop(id, None)
        self._read[id] = files
        if len(self._read) > REMEMBERED:
            with suppress(RuntimeError, StopIteration):  # another thread makes room at the same time
                self._read.pop(next(iter(self._read)), None)


def transient(exc: BaseException) -> bool:
    """Whether what failed may succeed when it is tried again; the upload of a file is a few causes away."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, StoreError):
        # kombu raises its error with the reason as its context
        cause = cause.__cause__ or (cause.__context__ if isinstance(cause, EncodeError) else None)
    return isinstance(cause, Transient)


def _has_file(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_file, value.values()))
    return isinstance(value, Pointed) or (isinstance(value, list | tuple | set) and any(map(_has_file, value)))
