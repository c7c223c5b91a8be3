"""Which requests belong to which task, and what a million of that task would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import unquote, urlsplit

from celery_s3.costs.prices import Prices, requests_cost
from devtools.proxy import Record

__all__ = ["by_task", "elsewhere", "million", "together"]

_MARK = "celery-task-meta-"
_CHORDS = "/celery-chords/"
#: Of a chord's parts; free, and its request names no key.
_CLEANUP = "DeleteObjects"
#: What tasks return as files.
_FILES = "/celery-files/"
_MILLION = 1_000_000


def by_task(records: Iterable[Record]) -> dict[str, Counter[str]]:
    """The requests for the result of each task id, and for the chord of each group id, by verb, whoever made them."""
    requests: dict[str, Counter[str]] = {}
    for record in records:
        task_id = _task_id(record)
        if task_id and record.kind != _CLEANUP:
            requests.setdefault(task_id, Counter())[record.kind] += 1
    return requests


def elsewhere(records: Iterable[Record]) -> Counter[str]:
    """The requests that concern no task's result, as ``PUT`` and the object's name."""
    others = (
        record for record in records if not _task_id(record) and record.kind != _CLEANUP and _FILES not in _path(record)
    )
    return Counter(f"{record.kind} {_name(record)}" for record in others)


def together(requests: Mapping[str, Counter[str]], task_ids: Iterable[str]) -> Counter[str]:
    """The requests for all of these tasks."""
    return sum((requests.get(task_id, Counter()) for task_id in task_ids), Counter())


def million(requests: Mapping[str, int], tasks: int, prices: Prices) -> float:
    """Dollars for a million tasks that need requests as these ``tasks`` did."""
    return requests_cost(requests, prices) / tasks * _MILLION


def _task_id(record: Record) -> str:
    path = _path(record)
    if _CHORDS in path:
        return path.partition(_CHORDS)[2].partition("/")[0]
    return path.partition(_MARK)[2]


def _name(record: Record) -> str:
    return _path(record).rpartition("/")[2]


def _path(record: Record) -> str:
    return unquote(urlsplit(record.target).path)
