"""Is everything as it should be: one step after the other, on the configured bucket.

::

    settings, client, credentials, bucket     nothing can be tried where there is no bucket
    PUT … latency                             on a scratch object
    notices                                   one over the broker, to this process itself
    cleanup                                   also after Ctrl-C; what a killed examination leaves, a later one removes

About 70 requests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from celery_s3.errors import CeleryS3Error

from . import access, broker, bucket, verbs
from .case import Case, Scratch
from .findings import Finding, Level, fail, ok, skip

__all__ = ["Case", "Finding", "Level", "Scratch", "examine"]

Step = Callable[[Case], Finding]

_FIRST: dict[str, Step] = {
    "settings": access.settings,
    "client": access.client,
    "credentials": access.credentials,
    "bucket": access.bucket,
}
_THEN: dict[str, Step] = {
    "PUT": verbs.write,
    "GET": verbs.read,
    "GET range": verbs.read_range,
    "LIST": verbs.listing,
    "missing key": verbs.missing,
    "conditional": verbs.conditional,
    "DELETE": verbs.delete,
    "DeleteObjects": verbs.delete_many,
    "checksums": bucket.checksums,
    "encryption": bucket.encryption,
    "sealing": verbs.sealed,
    "clock": bucket.clock,
    "versioning": bucket.versioning,
    "lifecycle": bucket.lifecycle,
    "latency": bucket.latency,
    "notices": broker.notices,
}
#: They look at the object that PUT has stored.
_NEED_OBJECT = {
    "GET",
    "GET range",
    "conditional",
    "DELETE",
    "DeleteObjects",
    "checksums",
    "encryption",
    "sealing",
    "latency",
}


def examine(case: Case) -> Generator[Finding, None, None]:
    """Each step's finding as soon as it is there.

    Close the iterator (``contextlib.closing``): what was written is deleted then, whatever happened.
    """
    try:
        yield from _steps(case)
    finally:
        case.scratch.clear()


def _steps(case: Case) -> Iterator[Finding]:
    for name, step in _FIRST.items():
        finding = replace(_tried(step, case), step=name)
        yield finding
        if name == "bucket" and finding.level == "FAIL":
            yield replace(bucket.clock(case), step="clock")
            yield replace(skip("not tried, since the bucket cannot be used"), step="the rest")
            return
    for name, step in _THEN.items():
        possible = case.body is not None or name not in _NEED_OBJECT
        finding = _tried(step, case) if possible else skip("not tried, since nothing could be stored")
        yield replace(finding, step=name)
    yield replace(_cleanup(case), step="cleanup")


def _tried(step: Step, case: Case) -> Finding:
    try:
        return step(case)
    except CeleryS3Error as exc:
        return fail(str(exc))


def _cleanup(case: Case) -> Finding:
    left = case.scratch.clear()
    if left:
        return fail(f"{len(left)} scratch objects could not be deleted, as {left[0]}", "Delete them.")
    return ok("every scratch object is deleted")
