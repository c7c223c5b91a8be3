"""What a server can do of what results, chords, files and the cleanup need, tried on scratch objects one by one.

Each capability is asked as S3 documents it, in both outcomes where there are two, below everything that works around a
lack of it. ``celery s3 doctor --thorough`` prints the table for a user's bucket; the project's table of servers is
made of the same runs.

About 130 requests and 6 MB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from celery_s3.errors import AccessDenied, CeleryS3Error, ObjectMissing, PreconditionFailed, StoreError
from celery_s3.results.write_once import HEAD_BYTES
from celery_s3.store.api import CREATE, Match, Precondition
from celery_s3.store.parallel import Pool
from celery_s3.store.probe import Verdict, ask
from celery_s3.store.requests import (
    AbortUpload,
    CompleteUpload,
    CreateUpload,
    Delete,
    DeleteMany,
    DeleteUnchanged,
    ListPage,
    PutPart,
)

from .doctor.case import Case
from .doctor.verbs import gone
from .lacking import SCHEDULE

__all__ = ["CAPABILITIES", "Answer", "Capability", "Tried", "try_all"]

Answer = Literal["yes", "worked around", "no", "not known"]

#: The bytes of S3's smallest part that is not the last.
_PART = 5 * 1024 * 1024
#: How often two writers meet at one key.
_RACES = 10
_WRONG = '"00000000000000000000000000000000"'
_RULE = {"Status": "Enabled", "Expiration": {"Days": 1}}

#: Keys that servers are known to change: what stands behind the scratch prefix, by what is odd about it.
_ODD_KEYS: Mapping[str, str] = {
    "a space": "a b",
    "a plus sign": "a+b",
    "a percent sign": "a%2Fb",
    "query characters": "a?b=c&d#e",
    "letters outside ASCII": "ä/日本",
    "an empty segment": "a//b",
    "a backslash": "a\\b",
    "a quote and brackets": "a'\"<b>",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a server can do or not.

    Attributes:
        name: how tables and programs call it.
        needed: what it is needed for.
        instead: what is done on a server without it, empty where nothing can be.
        check: tries it; an empty text where the server does as S3, else what it does instead.
    """

    name: str
    needed: str
    instead: str
    check: Callable[[Case], str]


@dataclass(frozen=True, slots=True)
class Tried:
    """What was found of one capability.

    Attributes:
        name: the capability's.
        verdict: ``yes``: as S3 does; ``worked around``: not so, and results are kept as well; ``no``: not so, and what
            it is needed for does without; ``not known``: the credentials do not allow to try it.
        found: what the server does instead, or why it is not known.
        instead: what celery-s3 does, or a user can do, without it.
    """

    name: str
    verdict: Answer
    found: str = ""
    instead: str = ""


def try_all(case: Case) -> Generator[Tried, None, None]:
    """Each capability's verdict as soon as it is there.

    Close the iterator (``contextlib.closing``): what was written is deleted then, whatever happened.
    """
    try:
        for capability in CAPABILITIES:
            yield _tried(capability, case)
    finally:
        case.scratch.clear()


def _tried(capability: Capability, case: Case) -> Tried:
    try:
        found = capability.check(case)
    except AccessDenied as exc:
        return Tried(capability.name, "not known", exc.reason)
    except CeleryS3Error as exc:
        found = exc.reason if isinstance(exc, StoreError) else str(exc)
    if not found:
        return Tried(capability.name, "yes")
    return Tried(capability.name, "worked around" if capability.instead else "no", found, capability.instead)


# -- conditions


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except PreconditionFailed:
        return True
    return False


def _create(case: Case) -> str:
    key = case.scratch.key("create")
    create = partial(case.store.put, key, b"1", precondition=CREATE)
    if _refused(create):
        return "a create is refused where nothing stands"
    return "" if _refused(create) else "a create replaces what stands there"


def _race(case: Case) -> str:
    pool = Pool(2)

    def create(key: str) -> bool:
        with suppress(PreconditionFailed):
            case.store.put(key, os.urandom(8), precondition=CREATE)
            return True
        return False

    try:
        won = []
        for number in range(_RACES):
            key = case.scratch.key(f"race-{number}")
            won.append(sum(outcome is True for _, outcome in pool.stream(create, [key, key])))
    finally:
        pool.close()
    return "" if max(won) <= 1 else "of two creates at the same time both succeed"


def _replace(case: Case) -> str:
    verdict = ask(case.store, case.scratch.key("replace"))
    return "" if verdict is Verdict.KEPT else verdict.words


def _read_version(case: Case) -> str:
    key = case.scratch.key("read")
    etag = case.store.put(key, b"1")
    if case.store.get(key, if_match=etag).body != b"1":
        return "other bytes come back"
    # by boto3 itself: our clients look at the etag of what comes back
    return "" if _refused(lambda: case.control.read(key, if_match=_WRONG)) else "If-Match is ignored"


def _delete_version(case: Case) -> str:
    key = case.scratch.key("delete-version")
    etag = case.store.put(key, b"1")
    if not _refused(lambda: case.store.send(Delete(key, _WRONG))):
        return "If-Match is ignored: another version is deleted"
    if _refused(lambda: case.store.send(Delete(key, etag))):
        return "If-Match is refused for the version that stands there"
    return ""


# -- deletes


def _delete_batch(case: Case) -> str:
    keys = [case.scratch.key(f"batch-{number}") for number in range(3)]
    for key in keys:
        case.store.put(key, b"1")
    case.store.send(DeleteMany([*keys, case.scratch.unwritten("batch")]))
    return "" if all(gone(case, key) for key in keys) else "what it deletes is still there"


def _delete_versions(case: Case) -> str:
    stays, goes = (case.scratch.key(f"versions-{number}") for number in range(2))
    case.store.put(stays, b"1")
    kept: list[str] = case.store.send(DeleteUnchanged({stays: _WRONG, goes: case.store.put(goes, b"1")}))
    if gone(case, stays):
        return "etags are ignored: another version is deleted"
    return "" if kept == [stays] and gone(case, goes) else "a right etag is refused"


# -- reads


def _range(case: Case) -> str:
    key, body = case.scratch.key("range"), os.urandom(1024)
    case.store.put(key, body)
    part, rest = case.control.read(key, "bytes=100-149"), case.control.read(key, "bytes=1000-")
    return "" if (part, rest) == (body[100:150], body[1000:]) else "other bytes come back than were asked for"


def _short_range(case: Case) -> str:
    key = case.scratch.key("short")
    case.store.put(key, b"short")
    return "" if case.control.read(key, f"bytes=0-{HEAD_BYTES - 1}") == b"short" else "other bytes come back"


def _empty(case: Case) -> str:
    key = case.scratch.key("empty")
    case.store.put(key, b"")
    return "" if case.store.get(key, length=HEAD_BYTES).body == b"" else "other bytes come back"


def _missing(case: Case) -> str:
    try:
        case.store.get(case.scratch.unwritten("missing"))
    except ObjectMissing:
        return ""
    except AccessDenied:
        return "403 instead of 404"
    return "an object that was never written is there"


def _metadata(case: Case) -> str:
    key, given = case.scratch.key("metadata"), {"celery-one": "1", "celery-two": "a b,c=d;e"}
    case.store.put(key, b"1", metadata=given, content_type="application/x-one; charset=utf-8")
    found = case.store.get(key)
    if dict(found.metadata) != given:
        return f"metadata comes back as {dict(found.metadata)}"
    return "" if found.content_type == "application/x-one; charset=utf-8" else f"{found.content_type!r} comes back"


# -- uploads in parts


def _uploaded(case: Case, key: str, bodies: Sequence[bytes], precondition: Precondition = None) -> str:
    """The etag that the completion answers."""
    upload = case.store.send(CreateUpload(key))
    try:
        etags = [case.store.send(PutPart(key, upload, number, body)) for number, body in enumerate(bodies, 1)]
        return case.store.send(CompleteUpload(key, upload, etags, precondition))
    except BaseException:
        with suppress(StoreError):
            case.store.send(AbortUpload(key, upload))
        raise


def _multipart(case: Case) -> str:
    key, bodies = case.scratch.key("parts"), (os.urandom(_PART), b"last")
    _uploaded(case, key, bodies)
    found = case.store.get(key, start=_PART - 4)
    return "" if found.body == bodies[0][-4:] + bodies[1] else "other bytes come back"


def _completion(case: Case) -> str:
    key = case.scratch.key("completion")
    _uploaded(case, key, [b"1"], CREATE)
    if not _refused(lambda: _uploaded(case, key, [b"2"], CREATE)):
        return "If-None-Match is ignored: what stands there is replaced"
    if not _refused(lambda: _uploaded(case, key, [b"2"], Match(_WRONG))):
        return "If-Match is ignored: another version is replaced"
    etag = case.store.get(key).etag
    return "a right etag is refused" if _refused(lambda: _uploaded(case, key, [b"2"], Match(etag))) else ""


def _completion_etag(case: Case) -> str:
    key = case.scratch.key("completion-etag")
    etag = _uploaded(case, key, [b"1"])
    if not etag:
        return "the answer has none"
    return "" if etag == case.store.get(key).etag else "it is not the object's"


# -- listings


def _listing(case: Case) -> str:
    keys = sorted(case.scratch.key(f"list-{number}") for number in (1, 2, 10))
    for key in keys:
        case.store.put(key, b"1")
    prefix = keys[0].removesuffix("list-1")
    listed = [entry.key for entry in case.store.list(f"{prefix}list-")]
    if listed != keys:
        return "what was just stored is not listed, or not in the order of the keys"
    after = [entry.key for entry in case.store.list(f"{prefix}list-", start_after=keys[0])]
    return "" if after == keys[1:] else "start-after is ignored"


def _last_modified(case: Case) -> str:
    key = case.scratch.key("modified")
    case.store.put(key, b"1")
    return "" if case.control.stored(key).get("LastModified") else "an answer does not say when the object was written"


def _times(case: Case) -> str:
    key = case.scratch.key("times")
    case.store.put(key, b"1")
    (told,) = case.control.listed(key)
    read = case.control.stored(key).get("LastModified", told)
    if told == read:
        return ""
    far = abs((told - read).total_seconds()) >= 1
    return f"a listing and a GET differ by {'a second or more' if far else 'part of a second'}"


def _odd_keys(case: Case) -> str:
    wrong = []
    for what, name in _ODD_KEYS.items():
        key = case.scratch.key(f"odd-{name}")
        body = os.urandom(8)
        try:
            case.store.put(key, body)
            listed = [entry.key for entry in case.store.send(ListPage(key)).entries]
            right = case.store.get(key).body == body and listed == [key]
        except StoreError:
            right = False
        if not right:
            wrong.append(what)
    return f"keys with {', '.join(wrong)} do not come back as they are" if wrong else ""


# -- the rest


def _tags(case: Case) -> str:
    case.store.put(case.scratch.key("tags"), b"1", tags={"celery-s3": "doctor"})
    return ""


def _checksum(case: Case) -> str:
    case.control.put_with_checksum(case.scratch.key("crc"), b"123456789")
    return ""


def _clock(case: Case) -> str:
    case.control.region()
    skew = case.control.skew
    if skew is None:
        return "it does not tell its time"
    return "" if abs(skew) <= 5 else f"its clock differs from this machine's by {abs(skew):.0f} s"


def _lifecycle(case: Case) -> str:
    """Rules are put only where they change nothing: those that stand there, else one for the scratch objects."""
    standing = case.control.lifecycle()
    rule: dict[str, Any] = {**_RULE, "ID": "celery-s3-doctor", "Filter": {"Prefix": case.scratch.unwritten("rule")}}
    wanted = standing or [rule]
    case.control.put_lifecycle(wanted, replacing=standing)
    try:
        found = case.control.lifecycle()
    finally:
        if not standing:
            case.control.put_lifecycle([], replacing=None)
    return "" if [one.get("ID") for one in found] == [one.get("ID") for one in wanted] else "other rules come back"


_READ_FIRST = "each result is read before it is written, and chords poll; two writers of one moment may overwrite"

#: In the order in which they are tried; the names are those of the table in the documentation.
CAPABILITIES: Sequence[Capability] = (
    Capability("create", "a stored SUCCESS is final", _READ_FIRST, _create),
    Capability("atomic create", "exactly one of two writers wins", "", _race),
    Capability("replace", "tracked tasks, retries, chords", f"an etag without quotes, or else {_READ_FIRST}", _replace),
    Capability("read of a version", "large results come whole", "each part's etag is compared", _read_version),
    Capability("delete of a version", "sweeps spare what is new", "looked at right before", _delete_version),
    Capability("batch delete", "cleanups", "one by one", _delete_batch),
    Capability("batch delete of versions", "cleanups", "one by one, looked at before", _delete_versions),
    Capability("range", "large results", "", _range),
    Capability("range of a short object", "every result", "read whole, at one more request", _short_range),
    Capability("empty object", "empty files", "", _empty),
    Capability("404", "results that are not there yet", "set `missing_as_403`", _missing),
    Capability("metadata", "states of large results", "", _metadata),
    Capability("upload in parts", "results over 16 MiB, files over 8 MiB", "", _multipart),
    Capability("conditional completion", "a stored SUCCESS is final", "looked at right before", _completion),
    Capability("ETag of a completion", "large results", "the object is read for it", _completion_etag),
    Capability("listing", "repairs, sweeps, commands", "", _listing),
    Capability("Last-Modified", "expiry: no result is read without it", "", _last_modified),
    Capability("one time", "repairs, sweeps", "compared in whole seconds", _times),
    Capability("odd keys", "ids that are not Celery's own", "", _odd_keys),
    Capability("tags", "`tags`, `expiry_tags`", "leave both unset", _tags),
    Capability("CRC32", "boto3's default checksums", "celery-s3 sends none to this server", _checksum),
    Capability("clock", "expiry", "", _clock),
    Capability("lifecycle", "expired results are deleted", SCHEDULE, _lifecycle),
)
