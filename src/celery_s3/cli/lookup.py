"""What the commands about one id share: its keys, and its object."""

from __future__ import annotations

from celery_s3.backends.s3 import S3Backend
from celery_s3.errors import CeleryS3Error, ResultNotRead, StoreError
from celery_s3.store.api import Object

__all__ = ["keys_of", "stored"]


def keys_of(backend: S3Backend, id: str) -> tuple[str, str]:
    """The key of the result with this id, and that of the saved group.

    Raises:
        CeleryS3Error: there can be none.
    """
    try:
        return backend.layout.result_key(id), backend.layout.group_key(id)
    except ValueError as exc:
        raise CeleryS3Error(str(exc)) from exc


def stored(backend: S3Backend, id: str) -> tuple[Object, bool]:
    """What is stored under an id, a large one in part, and whether it is a saved group. One request, or two.

    Raises:
        CeleryS3Error: there is nothing, or it has expired.
        ResultNotRead: the store fails.
    """
    try:
        for key, is_group in zip(keys_of(backend, id), (False, True), strict=True):
            found = backend.results.read(key)
            if found is not None:
                return found, is_group
    except StoreError as exc:
        raise ResultNotRead(f"{id} was not read: {exc}", id) from exc
    raise CeleryS3Error(
        f"There is no result of {id} in {backend.settings.uri}, and no saved group: the task has not stored one"
        " yet or ignores it, or it was forgotten, or has expired."
    )
