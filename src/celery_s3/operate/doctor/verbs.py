"""Each request that a worker or a client makes, tried on a scratch object."""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import closing
from dataclasses import replace

from celery_s3.bucket import open_store
from celery_s3.errors import AccessDenied, ObjectMissing, StoreError
from celery_s3.results.write_once import HEAD_BYTES
from celery_s3.store.probe import ask
from celery_s3.store.requests import Object

from .case import Case
from .findings import Finding, denied, fail, ok, warn

__all__ = [
    "conditional",
    "delete",
    "delete_many",
    "gone",
    "listing",
    "missing",
    "read",
    "read_range",
    "sealed",
    "write",
]

_BLOCKED = "Some servers refuse every write to a bucket that blocks public ACLs: then take BlockPublicAcls back."


def write(case: Case) -> Finding:
    """Whether an object with metadata, and tags where they are set, can be stored."""
    case.object, body = case.scratch.key("object"), os.urandom(1024)
    try:
        case.store.put(case.object, body, metadata={"state": "DOCTOR"}, content_type="application/octet-stream")
    except StoreError as exc:
        if isinstance(exc, AccessDenied):  # nothing was written, so nothing is to be deleted; other errors do not tell
            case.scratch.forget(case.object)
        actions = ["s3:PutObject", *(["s3:PutObjectTagging"] if case.settings.tags else [])]
        found = denied(exc, case.settings, actions)
        if isinstance(exc, AccessDenied) and not case.settings.on_aws:
            found = replace(found, remedy=f"{found.remedy} {_BLOCKED}")
        return found
    case.body = body
    return ok("an object of 1 KB is stored")


def read(case: Case) -> Finding:
    """Whether the same bytes and metadata come back."""
    try:
        found = case.store.get(case.object)
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:GetObject"])
    if found.body != case.body:
        return fail("what comes back is not what was stored", "Is there a cache or a proxy before the server?")
    if found.metadata.get("state") != "DOCTOR":
        return fail("the user metadata is lost on the way", "Is there a proxy that removes x-amz-meta-* headers?")
    return ok("the same bytes and metadata come back")


def read_range(case: Case) -> Finding:
    """Whether objects can be read as results are: their first 64 KiB, however short they are, then other parts."""
    empty = case.scratch.key("empty")
    body = case.body or b""
    try:
        case.store.put(empty, b"")
        looks = {b"": case.store.get(empty, length=HEAD_BYTES), body: case.store.get(case.object, length=HEAD_BYTES)}
        part = case.store.get(case.object, start=100, length=50)
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:GetObject"])
    if part.body != body[100:150] or not all(_is_whole(found, stored) for stored, found in looks.items()):
        return fail("other bytes come back than were asked for", "Results are read in ranges: upgrade the server.")
    return ok("the first 64 KiB of short objects, as results are read, and a part, as large ones are")


def _is_whole(found: Object, stored: bytes) -> bool:
    return found.complete and found.body == stored


def listing(case: Case) -> Finding:
    """Whether what was just stored is listed at once; what a killed examination left is found here."""
    try:
        entries = list(case.store.list(case.scratch.folder))
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:ListBucket"])
    for entry in entries:
        case.scratch.adopt(entry.key, entry.modified)
    if case.body is not None and case.object not in [entry.key for entry in entries]:
        return fail("the object just stored is not listed", "Chords are repaired from listings: upgrade the server.")
    return ok("the object is listed at once")


def missing(case: Case) -> Finding:
    """A result that is not there yet must not look like an error."""
    try:
        case.store.get(case.scratch.unwritten("missing"))
    except ObjectMissing:
        return ok("404 for a result that is not there yet")
    except AccessDenied as exc:
        text = f"403 instead of 404 for a result that is not there yet: {exc.reason}"
        if case.settings.missing_as_403:
            return ok("403 for a result that is not there yet, as `missing_as_403` expects")
        return warn(text, "Allow s3:ListBucket on the bucket, or set `missing_as_403`.")
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:GetObject"])
    return fail("an object that was never written is there", "Is there a proxy that answers in the server's place?")


def conditional(case: Case) -> Finding:
    """Whether a SUCCESS can be protected by the write itself."""
    try:
        verdict = ask(case.store, case.scratch.key("conditional"))
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:PutObject"])
    if verdict.supported:
        return ok(f"{verdict.words}: a stored SUCCESS is final, chords need no polling task")
    mode = case.settings.conditional_writes
    if mode == "off":
        return ok(f"{verdict.words}; `conditional_writes` is off")
    remedy = "Upgrade the server; until then each result is read before it is written, and chords poll."
    return fail(verdict.words, remedy) if mode == "required" else warn(verdict.words, remedy)


def sealed(case: Case) -> Finding:
    """Whether the keys that seal can be used from here; results are stored through them."""
    if not case.settings.seal_keys:
        return ok("off: `seal_keys` is not set")
    key = case.scratch.key("sealed")
    with closing(open_store(replace(case.settings, max_retries=0, opentelemetry=False))) as opened:
        try:
            opened.store.put(key, b"sealed")
            found = opened.store.get(key).body
        except StoreError as exc:
            return denied(exc, case.settings, ["s3:PutObject", "s3:GetObject"])
    if found != b"sealed":
        return fail("sealed bytes come back changed")
    exposed = [key.file for key in case.settings.seal_keys if key.file and os.stat(key.file).st_mode & stat.S_IROTH]
    if exposed:
        files = " ".join(map(shlex.quote, exposed))
        return warn(f"any user of this machine may read the keys in {files}", f"chmod o= {files}")
    return ok("what is sealed can be opened")


def delete(case: Case) -> Finding:
    """Whether an object that is deleted is gone at once."""
    key = case.scratch.key("delete")
    try:
        case.store.put(key, b"to be deleted")
        case.store.delete(key)
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:DeleteObject"])
    return _gone(case, key)


def delete_many(case: Case) -> Finding:
    """Whether objects that one DeleteObjects deletes are gone at once."""
    keys = [case.scratch.key(f"delete-{number}") for number in (1, 2)]
    try:
        for key in keys:
            case.store.put(key, b"to be deleted")
        case.store.delete_many(keys)
    except StoreError as exc:
        return denied(exc, case.settings, ["s3:DeleteObject"])
    return _gone(case, *keys)


def _gone(case: Case, *keys: str) -> Finding:
    for key in keys:
        try:
            if not gone(case, key):
                return fail("a deleted object is still there", "Is there a cache before the server?")
        except StoreError as exc:
            return denied(exc, case.settings, ["s3:GetObject"])
    return ok("deleted objects are gone at once")


def gone(case: Case, key: str) -> bool:
    """Whether there is no such object any more.

    Raises:
        StoreError: it is not known.
    """
    try:
        case.store.get(key)
    except (ObjectMissing, AccessDenied):  # without s3:ListBucket, S3 answers 403 for a key that does not exist
        return True
    return False
