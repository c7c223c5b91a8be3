"""The rest of a large object, of which the first bytes were read: in parallel ranges of the same version."""

from __future__ import annotations

from collections.abc import Iterator

from .api import Object, Store
from .parallel import Pool

__all__ = ["behind"]


def behind(
    first: Object, store: Store, pool: Pool, length: int, *, at_once: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """What lies behind the bytes of ``first``, in any order: where each range begins in the object, and its bytes.

    Arguments:
        length: the bytes of one request.
        at_once: how many are under way at most, where that is to be fewer than the pool's concurrency.

    Raises:
        ObjectMissing: it is gone by now.
        PreconditionFailed: another version stands there by now.
        StoreError: the first error of any request.
    """

    def read(start: int) -> bytes:
        return store.get(first.key, start=start, length=length, if_match=first.etag).body

    starts = range(len(first.body), first.size, length)
    for start, found in pool.stream(read, starts, at_once=at_once):
        if isinstance(found, BaseException):
            raise found
        yield start, found
