"""What the server and the bucket make of what is stored: bytes, keys, clock, versions, expiry, time."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from celery_s3.errors import AccessDenied, BadRequest, StoreError
from celery_s3.expiry.rules import Rule, covers, hazards, outdated, shared
from celery_s3.expiry.terms import DAY
from celery_s3.operate.lacking import SCHEDULE

from .case import Case
from .findings import Finding, denied, fail, ok, skip, warn

__all__ = ["checksums", "clock", "encryption", "latency", "lifecycle", "versioning"]

#: Seconds by which the clocks may differ before it shows: results expire by this machine's clock.
_SKEW = 5.0
#: Seconds, above which the bucket is far away.
_FAR = 0.15
_SAMPLES = 20
_NO_RULES = warn(
    "the server has no lifecycle API: no rule deletes what has expired", f"{SCHEDULE[0].upper()}{SCHEDULE[1:]}."
)
_VERSIONING = {"Enabled": "on", "Suspended": "suspended"}


def checksums(case: Case) -> Finding:
    """boto3 sends CRC32 to Amazon; other servers get none, since older ones refuse it."""
    try:
        case.control.put_with_checksum(case.scratch.key("checksum"), b"123456789")
    except BadRequest as exc:
        if case.settings.on_aws:
            return denied(exc, case.settings, ())
        return ok(f"CRC32 is refused ({exc.status}); celery-s3 sends none to this server")
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:PutObject"])
    return ok("CRC32 is accepted")


def encryption(case: Case) -> Finding:
    """What the server says of an object that was just stored."""
    settings = case.settings
    try:
        found = case.control.stored(case.object)
    except StoreError as exc:
        return denied(exc, settings, ["s3:GetObject"])
    sse, key = str(found.get("ServerSideEncryption", "")), str(found.get("SSEKMSKeyId", ""))
    text = f"{sse}{f' with {key}' if key else ''}" if sse else "not encrypted by the server"
    if settings.sse and sse != settings.sse:
        return fail(f"{text}, and `sse` says {settings.sse}", "The server does not do it: correct `sse`, or upgrade.")
    wanted = settings.sse_kms_key_id or ""
    if wanted and "alias/" not in wanted and wanted.rpartition("/")[2] != key.rpartition("/")[2]:
        return fail(f"{text}, and `sse_kms_key_id` says another key", "Correct `sse_kms_key_id`.")
    if settings.bucket_key and not found.get("BucketKeyEnabled"):
        return warn(f"{text}, without a bucket key", "Each object costs a request to KMS: is the server Amazon's?")
    return ok(text + ("" if settings.sse or not sse else ", by the bucket's default"))


def clock(case: Case) -> Finding:
    """Results expire by the difference of the server's clock and this machine's."""
    skew = case.control.skew
    if skew is None:
        return skip("the server does not tell its time")
    if abs(skew) <= _SKEW:
        return ok("within a few seconds of the server's")
    text = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server"
    remedy = "Synchronise it (NTP): results expire that much too early or too late; S3 refuses 15 minutes."
    return fail(text, remedy) if abs(skew) > 900 else warn(text, remedy)


def versioning(case: Case) -> Finding:
    """Whether the bucket keeps what is deleted, and for how long."""
    status, unknown = _answer_or_finding(case.control.versioning, "s3:GetBucketVersioning")
    if unknown:
        return unknown
    if not status:
        return ok("off: what is deleted is gone")
    rules, _ = _answer_or_finding(case.control.lifecycle, "s3:GetLifecycleConfiguration")
    if all(rule in (rules or ()) for rule in case.rules(True) if "NoncurrentVersionExpiration" in rule):
        return ok(f"{_VERSIONING.get(status, status)}, and rules remove old versions after a day")
    remedy = "Let `celery -A … s3 init` add rules that remove old versions, or keep results in another bucket."
    what = "deleted and replaced results" if status == "Enabled" else "results from before"
    return warn(f"{_VERSIONING.get(status, status)}: {what} stay as old versions, and are billed", remedy)


def lifecycle(case: Case) -> Finding:
    """Whether the bucket deletes what has expired, and nothing else of ours."""
    rules, unknown = _answer_or_finding(case.control.lifecycle, "s3:GetLifecycleConfiguration", _NO_RULES)
    if unknown:
        return unknown
    wanted = case.rules(False)
    found = _harm(case, rules, wanted)
    remedies = list(found)
    if covers(rules, wanted):
        told = _covered(case.terms.longest)
    else:
        told = "no rule deletes all that expires: it stays, and is billed"
        remedies.insert(0, "Add rules with `celery -A … s3 init`, or run `celery -A … s3 sweep` now and then.")
    if not remedies:
        return ok(told)
    harm = " ".join(sentence for sentences in found.values() for sentence in sentences)
    return warn(f"{told}. {harm}" if harm else told, " ".join(remedies))


def _harm(case: Case, rules: list[Rule], wanted: list[Rule]) -> dict[str, list[str]]:
    """What rules do that they should not, by its remedy."""
    found = {
        "Narrow those rules, or change `base_path`.": hazards(rules, case.layout, case.terms, case.settings.tags),
        "Let `celery -A … s3 init` bring its rules up to date.": outdated(rules, wanted),
        "Set `base_path`, where others use this bucket.": shared(rules, case.layout),
    }
    return {remedy: sentences for remedy, sentences in found.items() if sentences}


def _covered(longest: float | None) -> str:
    if longest is None:
        return "results are kept for ever, since `result_expires` is not set; rules delete what else expires"
    return f"rules delete what has expired; results live {longest / DAY:.3g} day{'s' if longest != DAY else ''}"


def _answer_or_finding(
    ask: Callable[[], Any], action: str, lacking: Finding | None = None
) -> tuple[Any, Finding | None]:
    """What the bucket says, or why it is not known; ``lacking``: the finding where the server has no such API."""
    try:
        return ask(), None
    except AccessDenied:
        return None, skip(f"not known: these credentials lack {action}, which only operators need")
    except BadRequest as exc:
        return None, lacking or skip(f"the server does not tell: {exc.reason}")
    except StoreError as exc:
        return None, fail(exc.reason, exc.remedy)


def latency(case: Case) -> Finding:
    """How long requests take from here, and what it means for ``get()``."""
    try:
        put = _median(lambda: case.store.put(case.object, case.body or b""))
        get = _median(lambda: case.store.get(case.object))
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:PutObject", "s3:GetObject"])
    text = (
        f"PUT {put * 1000:.0f} ms, GET {get * 1000:.0f} ms (median of {_SAMPLES}): `get()` has a short task's result"
        f" about {(put + get + 0.01) * 1000:.0f} ms after its end, a longer task's within 10 % of its time"
    )
    return warn(text, "Is the bucket in another region than this machine?") if get > _FAR else ok(text)


def _median(request: Callable[[], object]) -> float:
    def timed() -> float:
        start = time.perf_counter()
        request()
        return time.perf_counter() - start

    return median(timed() for _ in range(_SAMPLES))
