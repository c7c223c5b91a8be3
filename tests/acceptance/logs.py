"""Reading the log of a worker."""

from __future__ import annotations

import re

_COMPLAINT = re.compile(r": (?:WARNING|ERROR|CRITICAL)/|^Traceback|celery_s3[/.]", re.MULTILINE)


def complaints(log: str, *expected: str) -> list[str]:
    """The lines of a log that are not of good cheer, but for those that hold one of the ``expected`` texts."""
    lines = [line for line in log.splitlines() if _COMPLAINT.search(line)]
    return [line for line in lines if not any(text in line for text in expected)]


def ours(log: str) -> list[str]:
    """The lines that our own modules have a part in, as a warning or in a traceback."""
    return [line for line in log.splitlines() if "celery_s3" in line]
