"""Every name of the user metadata of our objects, written and read, and how long one object lives.

==================  ==================  ============================================================================
name                whose               says
==================  ==================  ============================================================================
celery-state        results             the state, percent-encoded where it is not plain ASCII without spaces
celery-task         results             the task's name
celery-children     results             the children as JSON, where they fit
celery-files        results             how many files the task uploaded; ``?``: nobody knows
celery-saved        saved groups        nothing but that this package saved it
celery-expires      results, files      a term of its own, in seconds after Last-Modified; 0: for ever
celery-file         files               the file's name, percent-encoded
celery-upload       large objects       a random mark, by which an upload whose answer was lost knows its object
celery-seal         sealed objects      how the object was sealed, see :mod:`celery_s3.sealing.format`
==================  ==================  ============================================================================

S3 allows 2 KB of it in all. The body of a result says all of this too: the metadata is what a reader wants to know
without the body; and by it the sweep tells what this package has written from what another backend left under the same
keys. Most results have no term of their own: `result_expires` of whoever reads them tells. Only the
server's clock stamps both ends of a life, and each write of a state begins it anew, as everywhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import quote, unquote

from celery import states
from celery.result import ResultBase

from celery_s3.printable import get_logger

__all__ = [
    "EXPIRY_TAG",
    "EXPIRY_TAG_DAYS",
    "EXPIRY_TAG_DEFAULT",
    "FILE_NAME",
    "SAVED",
    "SEAL",
    "TERM_HEADER",
    "UPLOAD",
    "are_children",
    "children_in",
    "expires_at",
    "expiry_tags",
    "files_in",
    "is_ours",
    "result_metadata",
    "state_of",
    "task_of",
    "term_asked",
    "term_metadata",
    "term_of",
]

logger = get_logger(__name__)

_STATE = "celery-state"
_TASK = "celery-task"
_FILES = "celery-files"
_UNKNOWN = "?"
_CHILDREN = "celery-children"
_CHILDLESS = ("[]", "null")
_EXPIRES = "celery-expires"
_SAVED = "celery-saved"
#: The user metadata of a saved group.
SAVED = {_SAVED: "1"}
#: What every file has, and nothing else.
FILE_NAME = "celery-file"
#: The mark of a large object's upload.
UPLOAD = "celery-upload"
#: How a sealed object was sealed.
SEAL = "celery-seal"
#: What has one of these was written by this package; Celery's own backend and celery-s3 1.0.1 write none.
_OURS = frozenset((_STATE, _SAVED, _EXPIRES, SEAL))
#: S3 allows 2 KB of user metadata in all, names included; a seal takes 100 bytes, with AWS KMS 350.
_ROOM = 1600

#: The message header by which a call sets the seconds that its result lives.
TERM_HEADER = "result_expires"
_DAY = 86_400
#: The object tag that lifecycle rules filter by.
EXPIRY_TAG = "celery-s3-expires"
#: Its value for results without a term of their own.
EXPIRY_TAG_DEFAULT = "default"
#: Its other values, in days: the least that is enough.
EXPIRY_TAG_DAYS = (1, 2, 4, 7, 14, 30, 60, 90, 180, 365)


# -- results


def result_metadata(
    state: str, task: str | None = None, children: object = None, expires: float | None = None, files: int | None = 0
) -> dict[str, str]:
    """The user metadata of a result: ASCII, short; what does not fit is left to the body.

    Arguments:
        expires: the seconds that this result lives, 0 for ever; ``None``: like any.
        files: how many its task has uploaded, ``None`` where nobody knows.
    """
    wanted = {
        _STATE: _ascii(state),
        _EXPIRES: "" if expires is None else str(expires),
        _FILES: _UNKNOWN if files is None else str(files or ""),
        _TASK: _ascii(task or ""),
        # JSON's own escapes keep it ASCII
        _CHILDREN: json.dumps(children, separators=(",", ":"), default=str)
        if children
        else _CHILDLESS[children is None],
    }
    room = _ROOM
    fitting = {}
    for name, value in wanted.items():
        if value and len(name) + len(value) <= room:
            fitting[name] = value
            room -= len(name) + len(value)
    return fitting


def state_of(stored: Mapping[str, str]) -> str | None:
    """The state that the user metadata tells, ``None`` where another writer left none."""
    state = stored.get(_STATE)
    return unquote(state) if state else None


def is_ours(stored: Mapping[str, str]) -> bool:
    """Whether this package wrote the result or saved group, as its user metadata tells; other backends' have none."""
    return not _OURS.isdisjoint(stored)


def task_of(stored: Mapping[str, str]) -> str | None:
    """The task's name as the user metadata tells it, ``None`` where it does not."""
    task = stored.get(_TASK)
    return unquote(task) if task else None


def files_in(stored: Mapping[str, str]) -> int | None:
    """How many files its task has uploaded, as the user metadata tells; ``None`` where it does not know.

    The state that another process writes when a run was lost, or a run has still to come, knows of none.
    """
    told = stored.get(_FILES, "")
    if told.isdecimal():
        return int(told)
    return None if told or stored.get(_STATE) not in (None, "", states.SUCCESS) else 0


def children_in(stored: Mapping[str, str]) -> dict[str, Any]:
    """``{"children": …}`` (Celery's tuples, or ``None``) as the user metadata tells; empty where it does not."""
    try:
        children = json.loads(stored.get(_CHILDREN, ""))
        return {"children": children} if are_children(children) else {}
    except (ValueError, RecursionError):
        return {}


def are_children(found: object) -> bool:
    """Whether it is ``None`` or a list of results as tuples; Celery makes results of them whenever a state is asked.

    Raises:
        RecursionError: it is nested without end.
    """
    return found is None or (isinstance(found, list | tuple) and all(map(_is_result, found)))


def _is_result(found: object) -> bool:
    """Whether it is ``((id, parent), members)`` or ``(id, members)``; a plain result has no members."""
    if isinstance(found, ResultBase):
        return True  # pickled
    if not (isinstance(found, list | tuple) and len(found) == 2):
        return False
    name, members = found
    id, parent = name if isinstance(name, list | tuple) and len(name) == 2 else (name, None)
    return isinstance(id, str) and (parent is None or _is_result(parent)) and are_children(members)


@lru_cache(maxsize=1024)  # a few states, some task names
def _ascii(text: str) -> str:
    return quote(text, safe="!#$&'()*+,/:;=?@[]~<>^`{|}")  # no white space: HTTP trims it, signatures merge it


# -- how long one object lives


def term_asked(request: Any) -> float | None:
    """The seconds that a task's message asks for, 0 for ever; ``None`` where it says nothing.

    A value that makes no sense is warned about, and the result is stored as if there were none.
    """
    headers = getattr(request, "headers", None)
    value = headers.get(TERM_HEADER) if headers else None
    if value is None or _is_term(value):
        return value
    logger.warning(
        "Task %s: the message header %s is %.60r, not a number of seconds (0: for ever): its result expires like any.",
        getattr(request, "id", "?"),
        TERM_HEADER,
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


def term_metadata(seconds: float | None) -> dict[str, str]:
    """A term of its own as user metadata; ``None``: it has none."""
    return {} if seconds is None else {_EXPIRES: str(seconds)}


def term_of(stored: Mapping[str, str]) -> float | None:
    """The term that the user metadata tells, 0 for ever; ``None`` where there is none."""
    text = stored.get(_EXPIRES)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if _is_term(seconds) else None


class Dated(Protocol):
    """What is known of an object that was read: its user metadata, and when it was written (UTC)."""

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def modified(self) -> datetime: ...


def expires_at(found: Dated, expires: float | None) -> float | None:
    """When an object expires, in seconds since the epoch; ``None``: never.

    Last-Modified has whole seconds: an object lives up to a second longer than its term, never shorter.

    Arguments:
        expires: seconds that those without a term of their own live; ``None``: for ever.
    """
    term = term_of(found.metadata)
    seconds = expires if term is None else term
    return found.modified.timestamp() + 1 + seconds if seconds else None


def expiry_tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tag that tells lifecycle rules how long a result or a file with this user metadata lives.

    One that lives for more than a year, or for ever, has none: no rule deletes it.
    """
    term = term_of(metadata)
    if term is None:
        return {EXPIRY_TAG: EXPIRY_TAG_DEFAULT}
    return next(({EXPIRY_TAG: str(days)} for days in EXPIRY_TAG_DAYS if 0 < term <= days * _DAY), {})
