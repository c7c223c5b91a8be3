"""What happens to a process while it decodes or asks a client, and must come out as itself.

Decoders, compressors and clients make errors of their own of whatever they meet, and repeat what they have read.
"""

from __future__ import annotations

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["INTERRUPTIONS", "INTERRUPTIONS_OF_LARGE", "brief", "reraise_interruption"]

#: What says nothing of the bytes that were being decoded.
INTERRUPTIONS = (SoftTimeLimitExceeded,)
#: The same for large ones. Small ones that need more memory than there is are garbage.
INTERRUPTIONS_OF_LARGE = (SoftTimeLimitExceeded, MemoryError)

#: Characters of an error's text that are repeated: it may hold the whole value.
LONGEST = 200


def reraise_interruption(
    exc: Exception, handled: BaseException | None, kinds: tuple[type[Exception], ...] = INTERRUPTIONS
) -> None:
    """Raise the interruption that an error was made of, however often it was wrapped; nothing where there is none.

    Arguments:
        handled: what ``sys.exception()`` was before the work that has failed: Python makes it the context of all
            errors that follow, of which it says nothing.
        kinds: the errors that count.
    """
    found: BaseException | None = exc
    while found is not None and found is not handled:
        if isinstance(found, kinds):
            raise found from None
        found = found.__cause__ or found.__context__


def brief(exc: BaseException) -> str:
    """An error's type and the beginning of its text; never its arguments, among which may be what was read."""
    text = str(exc)
    return f"{type(exc).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + '…'}"
