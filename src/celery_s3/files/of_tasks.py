"""Files that tasks return or get: where they go, what is known of them, and deleting them with their result."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.exceptions import EncodeError

from celery_s3.bucket import Opened
from celery_s3.codec.kombu_json import dumps
from celery_s3.errors import AccessDenied, ObjectMissing, StoreError, Transient
from celery_s3.metadata import files_in, state_of
from celery_s3.processes import Remembered
from celery_s3.settings import Settings
from celery_s3.store.api import Object

from .whose import last_used, sending, storing

# The rest is imported where it is used: most results have no files.
if TYPE_CHECKING:
    from .objects import Files

__all__ = ["FilesOfTasks", "transient"]

#: The serializers that can hold a pointer to a file.
ABLE = ("json", "pickle", "typed+json")
REMEDY = "Set `result_serializer` to json, pickle or typed+json"
#: In place of a number of files, for a result that does not tell it.
UNTOLD = -1
#: How many results a process remembers to have files, or none.
REMEMBERED = 4096


class FilesOfTasks:
    """The files that go with the results and arguments of one backend's tasks.

    Arguments:
        bucket: the bucket that they are in.
        prefix: what the keys of all files begin with.
        serializer: the name of the backend's `result_serializer`.
        key_of: the key of a task's result.

    Attributes:
        uploaded: how many files of a task this process has uploaded, by its id, where there are any.
    """

    def __init__(
        self,
        bucket: Opened,
        settings: Settings,
        *,
        prefix: str,
        serializer: str,
        key_of: Callable[[str], str],
    ) -> None:
        self._bucket = bucket
        self._settings = settings
        self._prefix = prefix
        self._serializer = serializer
        self._key_of = key_of
        #: how many files results have, as far as they tell, for those that this process has read
        self._read: Remembered[str, int] = Remembered(REMEMBERED)
        self.uploaded: Remembered[str, int] = Remembered(REMEMBERED)

    @cached_property
    def files(self) -> Files:
        """To write, read and delete them."""
        from .objects import Files

        bucket = self._bucket
        return Files(bucket.store, bucket.writer, bucket.pool, self._settings, self._prefix, self.uploaded)

    # -- which backend a file goes to, and comes from

    def about_to_send(self, task_id: str = "") -> None:
        """A task, or a chord, is about to be sent: files among its arguments go here."""
        last_used.set(self)
        sending.set((self, task_id))

    def encode(self, data: Any) -> bytes | str:
        """What `result_serializer` makes of ``data``; files in it go here, and with the task whose meta it is.

        Raises:
            EncodeError: what the serializer raised, with the remedy where a file is the reason.
        """
        token = storing.set((self, data.get("task_id") if isinstance(data, dict) else None))
        try:
            return dumps(data, self._serializer)
        except EncodeError as exc:
            if self._serializer not in ABLE and _has_file(data):
                raise EncodeError(f"{self._serializer} cannot hold an S3File: {exc}. {REMEDY}") from exc
            raise
        finally:
            storing.reset(token)

    def about_to_decode(self, task_id: str, found: Object) -> None:
        """A result was read and is about to be decoded: files in it come from here."""
        last_used.set(self)
        if state_of(found.metadata) in states.READY_STATES:
            files = files_in(found.metadata)
            self._read.put(task_id, UNTOLD if files is None else files)

    # -- deleting

    def delete(self, task_id: str) -> None:
        """Delete the files of a task.

        Before its result: should this process die in between, the result can be forgotten again.

        Raises:
            StoreError: some of them may be left.
        """
        if keys := self._keys_of(task_id):
            self._bucket.store.delete_many(keys)

    def _keys_of(self, task_id: str) -> list[str]:
        known = self._read.pop(task_id, None)
        files = self._count_by_metadata(task_id) if known is None else known
        if files == 0:
            return []
        try:
            return self.files.keys_of(task_id)
        except AccessDenied:
            if files == UNTOLD:  # most such results have no files: to forget them takes no further permission
                return []
            raise

    def _count_by_metadata(self, task_id: str) -> int:
        """How many files a result has by its metadata, which the first byte of it comes with."""
        try:
            files = files_in(self._bucket.plain.get(self._key_of(task_id), length=1).metadata)
        except ObjectMissing:
            return 0
        return UNTOLD if files is None else files


def transient(exc: BaseException) -> bool:
    """Whether what failed may succeed when it is tried again; the upload of a file is a few causes away."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, StoreError):
        # kombu raises its error with the reason as its context
        cause = cause.__cause__ or (cause.__context__ if isinstance(cause, EncodeError) else None)
    return isinstance(cause, Transient)


def _has_file(value: Any) -> bool:
    from .file import S3File

    if isinstance(value, dict):
        return any(map(_has_file, value.values()))
    return isinstance(value, S3File) or (isinstance(value, list | tuple | set) and any(map(_has_file, value)))
