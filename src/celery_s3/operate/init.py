"""From the bucket as it is to the bucket as it should be: what is to change, then the changes, one after the other.

Each change is shown before it is made, may be made twice, and leaves alone what is not this package's. Whoever dies
in between runs it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from celery_s3.errors import AccessDenied, BucketMissing, CeleryS3Error, StoreError
from celery_s3.expiry.rules import (
    Rule,
    deletes,
    describe,
    hazards,
    leaves,
    merge,
    of_others,
    owner,
    shared,
)
from celery_s3.expiry.stale_uploads import StaleUploads
from celery_s3.expiry.terms import DAY, Terms
from celery_s3.keys import Layout
from celery_s3.settings import Settings
from celery_s3.store.clients.control import Control, Upload
from celery_s3.store.requests import Entry

from .lacking import SCHEDULE, lacks

__all__ = ["Change", "Plan", "default_encryption", "keeps_versions", "plan", "why"]

#: Where a bucket's encryption rule names the algorithm, and those that have a key, the weaker one first.
_DEFAULT = "ApplyServerSideEncryptionByDefault"
_KMS = ("aws:kms", "aws:kms:dsse")
#: Foreign objects that are shown.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to change.

    Attributes:
        lines: what comes (``+``), what goes (``-``), what stays (``=``), and what somebody must look at (``!``).
        deletes: how many objects that stand there now it deletes by and by.
        make: makes it; what it returns is to be told.
    """

    what: str
    lines: tuple[str, ...]
    make: Callable[[], str | None] = field(repr=False)
    deletes: int = 0

    @property
    def doubtful(self) -> bool:
        """Whether a person is to be asked, whatever was said beforehand."""
        return any(line.startswith("!") for line in self.lines)


@dataclass(slots=True)
class Plan:
    """What is to change.

    Attributes:
        troubles: what could not be looked at or changed, by what it is; the bucket may not be as it should be.
        lacking: what the server has no API for, likewise; nobody can do more there.
        warnings: what other rules do to the objects of this deployment.
    """

    changes: list[Change] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def note(self, what: str, error: CeleryS3Error, settings: Settings) -> None:
        """Note why something could not be looked at or changed."""
        (self.lacking if lacks(error, settings) else self.troubles)[what] = why(error, settings, what)


def plan(
    control: Control,
    rules: Callable[[bool], list[Rule]],
    layout: Layout,
    terms: Terms,
    listed: Callable[[str], Iterator[Entry]],
    former: Layout | None = None,
) -> Plan:
    """Look at the bucket; nothing is changed.

    Arguments:
        rules: the lifecycle rules that there should be, for a bucket that keeps versions or not.
        listed: what stands under a prefix.
        former: where everything was until `base_path` was changed, if the rules for that are to go.

    Raises:
        StoreError: the bucket cannot be looked at.
    """
    found = Plan()
    exists = True
    try:
        control.region()
    except BucketMissing:
        exists = False
        where = f"+ create {control.settings.bucket} in {control.settings.region}"
        found.changes.append(Change("bucket", (where,), control.create))
    looks = {
        "public access": partial(_public_access, control, layout),
        "encryption": partial(_encryption, control),
        "lifecycle": partial(_lifecycle, control, rules, layout, terms, listed, former, found.warnings),
        "uploads": partial(_uploads, control, layout),
    }
    for what, look in looks.items():
        try:
            found.changes += [Change(what, tuple(lines), make, *more) for lines, make, *more in look(exists)]
        except CeleryS3Error as exc:
            found.note(what, exc, control.settings)
    return found


def why(error: CeleryS3Error, settings: Settings, what: str) -> str:
    """Why something cannot be looked at or changed, in a line."""
    if isinstance(error, StoreError) and lacks(error, settings):
        instead = SCHEDULE if what == "lifecycle" else "it stays as it is"
        if error.status == 400:
            return f"{error.reason}: {instead}"
        return f"the server has no such thing ({error.status}): {instead}"
    if isinstance(error, AccessDenied):
        return f"{error.reason}: `celery -A … s3 policy --role administrator` prints what is needed"
    return error.reason if isinstance(error, StoreError) else str(error)


_Step = Iterator[tuple[Any, ...]]


def _public_access(control: Control, layout: Layout, exists: bool) -> _Step:
    if not (exists and control.public_access_blocked()):
        yield ["+ block every kind of public access to the bucket"], partial(_block, control, layout)


def _block(control: Control, layout: Layout) -> str | None:
    """Block public access, as far as the bucket can still be written to: Ceph takes every write for a public one."""
    key = layout.doctor_key(uuid4().hex, "writable")
    # Whoever may not write here before cannot find out; Amazon needs no finding out.
    looked = not control.settings.on_aws and control.may_write(key)
    control.block_public_access()
    if not looked:
        return None
    writable = False
    try:
        writable = control.may_write(key)
    finally:
        if not writable:
            control.block_public_access(acls=False)
    return None if writable else "without BlockPublicAcls, with which this server refuses every write"


def default_encryption(settings: Settings) -> dict[str, Any]:
    """The bucket's default encryption that the settings ask for, empty where they say nothing."""
    if not settings.sse:
        return {}
    rule: dict[str, Any] = {"SSEAlgorithm": settings.sse}
    if settings.sse_kms_key_id:
        rule["KMSMasterKeyID"] = settings.sse_kms_key_id
    key = {} if settings.bucket_key is None else {"BucketKeyEnabled": settings.bucket_key}
    return {_DEFAULT: rule, **key}


def _encryption(control: Control, exists: bool) -> _Step:
    wanted = default_encryption(control.settings)
    if not wanted:
        return
    standing = control.encryption() if exists else {}
    merged = _strengthened(standing, wanted)
    if merged != standing:
        lines = [*([f"- {_encryption_line(standing)}"] if standing else []), f"+ {_encryption_line(merged)}"]
        yield lines, partial(control.put_encryption, merged)


def _strengthened(standing: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The rule as wanted, but never weaker than it stands, nor without the key that it stands with."""
    before, after = standing.get(_DEFAULT, {}), wanted[_DEFAULT]
    if _strength(before) > _strength(after):
        return standing
    key = before.get("KMSMasterKeyID")
    if key and after["SSEAlgorithm"] in _KMS:
        after = {"KMSMasterKeyID": key, **after}
    # whatever else the rule holds stays
    return {**standing, **wanted, _DEFAULT: after}


def _strength(default: dict[str, Any]) -> int:
    """How strong an algorithm is; one that is not known here counts as strongest, so that it stays."""
    order = ("", "AES256", *_KMS)
    algorithm = default.get("SSEAlgorithm", "")
    return order.index(algorithm) if algorithm in order else len(order)


def _encryption_line(rule: dict[str, Any]) -> str:
    default = rule.get(_DEFAULT, {})
    key = f" with {default['KMSMasterKeyID']}" if "KMSMasterKeyID" in default else ""
    return f"{default.get('SSEAlgorithm', '')}{key}{', bucket key' if rule.get('BucketKeyEnabled') else ''}"


def _lifecycle(
    control: Control,
    rules: Callable[[bool], list[Rule]],
    layout: Layout,
    terms: Terms,
    listed: Callable[[str], Iterator[Entry]],
    former: Layout | None,
    warnings: list[str],
    exists: bool,
) -> _Step:
    standing = control.lifecycle() if exists else []
    warnings += hazards(standing, layout, terms, control.settings.tags)
    wanted = rules(exists and keeps_versions(control))
    merged = merge(standing, wanted, owner(former) if former else "")
    warnings += shared(merged, layout)
    if merged != standing:
        lines, doomed = list(_difference(standing, merged, wanted)), 0
        if exists:
            now = _server_time(control)
            for prefix, days in deletes(standing, merged).items():
                under = _Under(prefix, layout, now - days * DAY, listed)
                lines += under.lines()
                doomed += under.old
            lines += _forsaken(leaves(standing, merged), listed)
        yield lines, partial(control.put_lifecycle, merged, replacing=standing), doomed


class _Under:
    """What stands where a new rule deletes: all of it is listed, for it may be years of another backend's results.

    Attributes:
        all, old: how many objects there are, and how many the rule deletes in its first run.
        foreign: how many are not ours by the table of keys; the first of them in ``names``.
    """

    def __init__(self, prefix: str, layout: Layout, until: float, listed: Callable[[str], Iterator[Entry]]) -> None:
        self.prefix = prefix
        self.all = self.old = self.foreign = 0
        self.names: list[str] = []
        for entry in listed(prefix):
            self.all += 1
            self.old += entry.modified.timestamp() < until
            if layout.parse(entry.key) is None:
                self.foreign += 1
                self.names += [entry.key] * (len(self.names) < _SHOWN)

    def lines(self) -> Iterator[str]:
        if self.old:
            yield f"- {self.old:,} of the {self.all:,} objects that stand under {self.prefix} now: they are old enough"
        if self.foreign:
            more = f" and {self.foreign - _SHOWN:,} more" if self.foreign > _SHOWN else ""
            yield f"! deletes what celery-s3 has not written: {', '.join(self.names)}{more}"


def _server_time(control: Control) -> float:
    # `control.skew` is known since the first answer
    return time.time() - (control.skew or 0.0)


def _forsaken(prefixes: Sequence[str], listed: Callable[[str], Iterator[Entry]]) -> Iterator[str]:
    """Where something stands that no rule will delete any more."""
    for prefix in prefixes:
        if next(listed(prefix), None) is not None:
            yield f"! something stands under {prefix}, and no rule will delete it any more"


def keeps_versions(control: Control) -> bool:
    """Whether the bucket has, or may have, old versions; ``False`` also where the request is refused. One request."""
    try:
        return control.versioning() != ""
    except StoreError:
        return False


def _difference(standing: Sequence[Rule], merged: Sequence[Rule], wanted: Sequence[Rule]) -> Iterator[str]:
    yield from (f"- {describe(rule)}" for rule in standing if rule not in merged)
    yield from (f"+ {describe(rule)}" for rule in merged if rule not in standing)
    kept = sum(rule in merged for rule in standing)
    if kept:
        others = of_others(merged, wanted)
        theirs = f", {others} for another base_path (is it yours no more: --moved-from)" if others else ""
        yield f"= {kept} other rule{'s' if kept > 1 else ''} as before{theirs}"


def _uploads(control: Control, layout: Layout, exists: bool) -> _Step:
    uploads = StaleUploads(control, layout)
    stale = list(uploads.stale(_server_time(control))) if exists else []
    if stale:
        yield [f"- {one.key}, begun {one.started:%Y-%m-%d %H:%M}" for one in stale], partial(_abort, uploads, stale)


def _abort(uploads: StaleUploads, stale: Sequence[Upload]) -> None:
    for one in stale:
        uploads.abort(one)
