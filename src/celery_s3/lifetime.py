"""How long one object lives: what its message asks for, what stands beside it in the bucket, and when it ends.

Most results say nothing: `result_expires` of whoever reads them tells. One with a term of its own carries it in its
user metadata, in seconds after Last-Modified: only the server's clock stamps both ends then, and each write of a state
begins its life anew, as everywhere else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store.api import Object

__all__ = ["DAYS", "FILE", "HEADER", "PLAIN", "TAG", "asked", "ends", "metadata", "own", "tags"]

logger = logging.getLogger(__name__)

#: The message header by which a call sets the seconds that its result lives.
HEADER = "result_expires"
_METADATA = "celery-expires"
#: What the user metadata of every result has, and that of nothing else.
_STATE = "celery-state"
#: What the user metadata of every file has: its name.
FILE = "celery-file"

DAY = 86_400
#: The object tag that lifecycle rules filter by.
TAG = "celery-s3-expires"
#: Its value for results without a term of their own.
PLAIN = "default"
#: Its other values, in days: the least that is enough.
DAYS = (1, 2, 4, 7, 14, 30, 60, 90, 180, 365)


def asked(request: Any) -> float | None:
    """The seconds that a task's message asks for, 0 for ever; ``None`` where it says nothing.

    A value that makes no sense is warned about, and the result is stored as if there were none.
    """
    headers = getattr(request, "headers", None)
    value = headers.get(HEADER) if headers else None
    if value is None or _is_term(value):
        return value
    logger.warning(
        "Task %s: the message header %s is %.60r, not a number of seconds (0: for ever): its result expires like any.",
        getattr(request, "id", "?"),
        HEADER,
        value,
    )
    return None


def _is_term(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return 0 <= float(value) < math.inf
    except OverflowError:  # an integer of more than 308 digits
        return False


def metadata(seconds: float | None) -> dict[str, str]:
    """A term of its own as user metadata; ``None``: it has none."""
    return {} if seconds is None else {_METADATA: str(seconds)}


def own(stored: Mapping[str, str]) -> float | None:
    """The term that the user metadata tells, 0 for ever; ``None`` where there is none."""
    text = stored.get(_METADATA)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if _is_term(seconds) else None


def ends(found: Object, expires: float | None) -> float | None:
    """When an object expires, in seconds since the epoch; ``None``: never.

    Last-Modified has whole seconds: an object lives up to a second longer than its term, never shorter.

    Arguments:
        expires: seconds that those without a term of their own live; ``None``: for ever.
    """
    term = own(found.metadata)
    seconds = expires if term is None else term
    return found.modified.timestamp() + 1 + seconds if seconds else None


def tags(given: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:
    """The tags of an object: those of the settings, and of a result or a file how long it lives.

    One that lives for more than a year, or for ever, has no such tag: no rule deletes it.
    """
    if _STATE not in metadata and FILE not in metadata:
        return dict(given)
    term = own(metadata)
    value = PLAIN if term is None else next((str(days) for days in DAYS if 0 < term <= days * DAY), "")
    return {**given, TAG: value} if value else dict(given)
