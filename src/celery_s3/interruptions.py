"""What stands behind an error: decoders and compressors wrap whatever happens to them, and repeat what they read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["INTRUDERS", "INTRUDERS_LARGE", "brief", "passing"]

#: What happens to a process while it decodes, and says nothing of what it decodes.
INTRUDERS = (SoftTimeLimitExceeded,)
#: The same, of what is large: what is small and needs more memory than there is, is garbage.
INTRUDERS_LARGE = (SoftTimeLimitExceeded, MemoryError)

#: Characters of an error's text that are repeated: it may hold the whole value.
LONGEST = 200


@contextmanager
def passing(intruders: tuple[type[Exception], ...] = INTRUDERS) -> Iterator[None]:
    """Inside, these come out as themselves, whatever they were made into."""
    handled = sys.exception()  # the caller may be handling one, which is the context of all that follows
    try:
        yield
    except Exception as exc:
        found: BaseException | None = exc
        while found is not None and found is not handled:
            if isinstance(found, intruders):
                raise found from None
            found = found.__cause__ or found.__context__
        raise


def brief(exc: BaseException) -> str:
    """An error's type and the beginning of its text; never its arguments, among which may be what was read."""
    text = str(exc)
    return f"{type(exc).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + '…'}"
