"""What a change from Celery's own ``s3`` backend or from celery-s3 1.0.1 would do to what is in the bucket.

Reads alone: the bucket is listed, some results are read, nothing is written.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery_s3.codec.compression import compression_method
from celery_s3.errors import AccessDenied, CeleryS3Error, StoreError
from celery_s3.expiry.clock import server_clock
from celery_s3.expiry.rules import hazards
from celery_s3.expiry.terms import DAY, Terms
from celery_s3.keys import GROUPS, RESULTS, Layout
from celery_s3.results.reader import Reader
from celery_s3.settings import Settings
from celery_s3.store.api import Entry
from celery_s3.store.clients.control import Control

from .doctor.findings import Finding, denied, fail, ok, skip, warn

__all__ = ["Migration", "Standing"]

#: Results that are read, and the bytes of the largest of them.
SAMPLE, LARGEST = 20, 1024 * 1024


@dataclass(slots=True)
class Standing:
    """What stands in the bucket under the keys of results and saved groups.

    Attributes:
        count, size: objects and their bytes.
        expired: how many are older than the term of results.
        ruled: how many lifecycle rules would delete in their first run, as these count whole days.
        sample: some results, at random.
    """

    count: int = 0
    size: int = 0
    expired: int = 0
    ruled: int = 0
    sample: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Migration:
    """A check of a configuration before the switch.

    Arguments:
        reader: of a backend for which nothing has expired.
        terms: as they will be.
        conf: Celery's configuration.
        listed: what stands under a prefix.
        standing: filled by :meth:`findings`.
    """

    settings: Settings
    reader: Reader
    layout: Layout
    terms: Terms
    conf: Mapping[str, Any]
    listed: Callable[[str], Iterator[Entry]]
    standing: Standing = field(default_factory=Standing)

    def findings(self) -> Iterator[Finding]:
        """Each step's finding as soon as it is there."""
        steps = {
            "settings": self._settings,
            "permissions": self._count,
            "expiry": self._expiry,
            "reading": self._reading,
            "rules": self._rules,
            "way back": self._way_back,
        }
        for name, step in steps.items():
            try:
                finding = step()
            except CeleryS3Error as exc:
                finding = fail(str(exc))
            yield replace(finding, step=name)
            if name == "permissions" and finding.level == "FAIL":
                return

    def _settings(self) -> Finding:
        where = ", ".join(sorted(set(self.settings.where.values())))
        return ok(f"{self.settings.uri} in {self.settings.region}, from {where}")

    def _count(self) -> Finding:
        control, choose, standing = Control(self.settings), random.Random(0), self.standing  # noqa: S311 (a sample)
        now, term = server_clock(control)(), self.terms.results or math.inf
        longest = self.terms.longest
        ruled = math.inf if longest is None else math.ceil(longest / DAY) * DAY
        try:
            for kind in (RESULTS, GROUPS):
                for entry in self.listed(self.layout.prefix(kind)):
                    standing.count += 1
                    standing.size += entry.size
                    age = now - entry.modified.timestamp()
                    standing.expired += age >= term
                    standing.ruled += age >= ruled
                    if kind is RESULTS:
                        self._perhaps(entry, choose)
        except AccessDenied as exc:
            return denied(exc, self.settings, ["s3:ListBucket"])
        return ok(f"the bucket may be listed: {standing.count:,} results and saved groups, {standing.size:,} bytes")

    def _perhaps(self, entry: Entry, choose: random.Random) -> None:
        """Each of n results is in the sample with the same probability."""
        sample = self.standing.sample
        if len(sample) < SAMPLE:
            sample.append(entry)
        elif (place := choose.randrange(self.standing.count)) < SAMPLE:
            sample[place] = entry

    def _expiry(self) -> Finding:
        standing, term = self.standing, self.terms.results
        if term is None:
            return ok("results live for ever, as before")
        lives = f"`result_expires` ({term:,.0f} s)"
        if not standing.expired:
            return ok(f"nothing that is stored is older than {lives}")
        return fail(
            f"{standing.expired:,} of {standing.count:,} are older than {lives}: to this backend they have expired, and"
            " read as PENDING. They stay in the bucket: cleanup and sweep delete only what this backend has written.",
            "Set `result_expires` to None, or to the age of the oldest result that somebody may still want.",
        )

    def _reading(self) -> Finding:
        if not self.standing.sample:
            return skip("nothing is stored yet")
        read, trouble = 0, ""
        looked = [entry for entry in self.standing.sample if entry.size <= LARGEST]
        for entry in looked:
            found = self.layout.parse(entry.key)
            try:
                self.reader.meta(found.id if found else "")
            except CeleryS3Error as exc:
                trouble = trouble or str(exc)
            else:
                read += 1
        told = f"{read} of {len(looked)} results, taken at random, can be read"
        return fail(f"{told}. {trouble}") if trouble else ok(told)

    def _rules(self) -> Finding:
        try:
            standing = Control(self.settings).lifecycle()
        except StoreError as exc:
            return skip(f"the bucket's lifecycle rules are not known: {exc.reason}")
        harm = hazards(standing, self.layout, self.terms, self.settings.tags)
        if harm:
            return warn(" ".join(harm))
        if self.standing.ruled:
            return warn(
                f"the rules that `celery s3 init` makes would delete {self.standing.ruled:,} of these at once",
                "Run it once they are not wanted any more; it asks for that number. Without it nothing deletes them.",
            )
        return ok("no lifecycle rule deletes what is stored before its time")

    def _way_back(self) -> Finding:
        unread = []
        if compression_method(self.conf.get("result_compression")):
            unread.append("those that `result_compression` makes smaller")
        if self.settings.seal_keys and self.settings.seal != "off":
            unread.append("any with `seal_keys`")
        told = "the earlier backend reads what this one stores, but no results that are `bytes`"
        if not unread:
            return ok(told)
        return warn(f"{told}, nor {', nor '.join(unread)}", "Set these once you are sure that you stay.")
