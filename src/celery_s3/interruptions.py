"""What happens to a process while it encodes, decodes or asks a client, and must come out as itself.

Encoders, decoders, compressors and clients make errors of their own of whatever they meet, and repeat what they have
read.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from functools import partial
from traceback import clear_frames
from types import CodeType, TracebackType

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["INTERRUPTIONS", "INTERRUPTIONS_OF_LARGE", "brief", "chain", "forget_locals", "reraise_interruption"]

#: What says nothing of the bytes that were being decoded; and so does whatever a signal's handler raises.
INTERRUPTIONS = (SoftTimeLimitExceeded,)
#: The same for large ones. Small ones that need more memory than there is are garbage.
INTERRUPTIONS_OF_LARGE = (SoftTimeLimitExceeded, MemoryError)

#: Characters of an error's text that are repeated: it may hold the whole value.
LONGEST = 200

_OURS = __name__.partition(".")[0] + "."


def reraise_interruption(
    exc: BaseException, handled: BaseException | None, kinds: tuple[type[Exception], ...] = INTERRUPTIONS
) -> None:
    """Raise the interruption that an error is, or was made of, however often it was wrapped; else do nothing.

    An interruption is one of ``kinds``, or anything that the handler of a signal has raised, as a ``TimeoutError`` of
    an application's own alarm.

    Arguments:
        handled: what ``sys.exception()`` was before the work that has failed: Python makes it the context of all
            errors that follow, of which it says nothing.
        kinds: the errors that count.
    """
    # the innermost: kombu gives its own error the traceback of what it wraps
    for found in reversed(list(chain(exc, handled))):
        if isinstance(found, kinds) or _is_of_a_handler(found.__traceback__):
            before = found.__context__
            try:
                raise found from None
            finally:
                found.__context__ = before  # not what was made of it


def chain(exc: BaseException, handled: BaseException | None = None) -> Iterator[BaseException]:
    """An error and what it was made of, up to what was handled before."""
    found: BaseException | None = exc
    while found is not None and found is not handled:
        following = found.__cause__ or found.__context__
        yield found
        found = following


def forget_locals(exc: BaseException, handled: BaseException | None = None) -> None:
    """Clear the locals of all frames that an error, or what it was made of, has left.

    Error trackers show them, and those of libraries hold what was signed and keys as they are.
    """
    for found in chain(exc, handled):
        clear_frames(found.__traceback__)


def _is_of_a_handler(traceback: TracebackType | None) -> bool:
    """Whether an error has left the handler of a signal, which runs in the midst of whatever it interrupts."""
    codes = set()
    # The first frame is the one that has caught the error.
    while traceback is not None and (traceback := traceback.tb_next) is not None:
        # our own frames are no handlers: those who poll for a result meet no others, and need not ask
        if not traceback.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
            codes.add(traceback.tb_frame.f_code)
    if not codes or threading.current_thread() is not threading.main_thread():
        return False
    return any(_code(signal.getsignal(number)) in codes for number in signal.valid_signals())


def _code(handler: object) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    found = getattr(handler, "__code__", None)
    if found is None and callable(handler):
        found = getattr(handler.__call__, "__code__", None)
    return found if isinstance(found, CodeType) else None


def brief(exc: BaseException) -> str:
    """An error's type and the beginning of its text; never its arguments, among which may be what was read."""
    text = str(exc)
    return f"{type(exc).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + '…'}"
