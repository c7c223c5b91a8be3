"""What happens to a process while it decodes or asks a client, and must come out as itself.

Decoders, compressors and clients make errors of their own of whatever they meet, and repeat what they have read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["INTERRUPTIONS", "INTERRUPTIONS_OF_LARGE", "brief", "unwrapping"]

#: What says nothing of the bytes that were being decoded.
INTERRUPTIONS = (SoftTimeLimitExceeded,)
#: The same for large ones. Small ones that need more memory than there is are garbage.
INTERRUPTIONS_OF_LARGE = (SoftTimeLimitExceeded, MemoryError)

#: Characters of an error's text that are repeated: it may hold the whole value.
LONGEST = 200


@contextmanager
def unwrapping(kinds: tuple[type[Exception], ...] = INTERRUPTIONS) -> Iterator[None]:
    """Inside, errors of these kinds are raised as themselves, however often they were wrapped in others."""
    handled = sys.exception()  # the caller may be handling one, which is the context of all that follows
    try:
        yield
    except Exception as exc:
        found: BaseException | None = exc
        while found is not None and found is not handled:
            if isinstance(found, kinds):
                raise found from None
            found = found.__cause__ or found.__context__
        raise


def brief(exc: BaseException) -> str:
    """An error's type and the beginning of its text; never its arguments, among which may be what was read."""
    text = str(exc)
    return f"{type(exc).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + '…'}"
