"""What deletes expired results: the bucket's lifecycle rules, Celery's daily cleanup, a sweep."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from celery_s3.bucket import Opened
from celery_s3.chords.repair import Repair
from celery_s3.errors import StoreError
from celery_s3.keys import Layout
from celery_s3.printable import get_logger
from celery_s3.settings import Settings
from celery_s3.store.api import PAGE
from celery_s3.store.clients.control import Control

from . import clock
from .rules import Rule, covers, wanted
from .stale_uploads import StaleUploads
from .sweep import CAREFUL, Sweep, Swept, areas
from .terms import Terms

__all__ = ["Expiry"]

logger = get_logger(__name__)

#: Seconds that the daily cleanup sweeps: well below what a broker waits for a task to be acknowledged.
CLEANUP_SECONDS = 600.0


class Expiry:
    """The expiry of what one backend stores.

    Arguments:
        bucket: that which it is stored in.
        layout: where everything is.
        terms: how long everything lives.
        repairs: what finds what chords leave behind, made of a function that tells the time.
    """

    def __init__(
        self,
        bucket: Opened,
        settings: Settings,
        layout: Layout,
        terms: Terms,
        repairs: Callable[[Callable[[], datetime]], Repair],
    ) -> None:
        self._bucket = bucket
        self._settings = settings
        self._layout = layout
        self._terms = terms
        self._repairs = repairs

    # -- lifecycle rules

    def rules(self, *, versioned: bool = False) -> list[Rule]:
        """The lifecycle rules that the bucket should have.

        Arguments:
            versioned: the bucket keeps versions.
        """
        return wanted(self._layout, self._terms, by_tag=self._settings.expiry_tags, versioned=versioned)

    def left_to_rules(self) -> bool:
        """Whether the bucket's lifecycle rules delete all results and files, in one request; ``False`` if it fails."""
        results = (self._layout.results, self._layout.files, self._layout.groups)
        rules = [rule for rule in self.rules() if "Expiration" in rule and _prefix(rule) in results]
        if len({_prefix(rule) for rule in rules}) < len(results):
            return False  # some live for ever, and no tag tells them from others
        try:
            return covers(Control(self._settings).lifecycle(), rules)
        except Exception as exc:  # noqa: BLE001 (beat must start, whatever this is)
            why = exc if isinstance(exc, StoreError) else type(exc).__name__
            logger.info("celery.backend_cleanup is scheduled, as the lifecycle rules could not be read: %s", why)
            return False

    # -- deleting

    def sweep(self, *, dry_run: bool = False, thorough: bool = False, adopt: bool = False) -> Sweep:
        """A sweep, ready to run; asks the server for its time, in one request.

        Arguments:
            dry_run: everything but deleting and aborting.
            thorough: look at every result, however young: it may have a shorter term of its own.
            adopt: also delete what another backend has written under the same keys.

        Raises:
            StoreError: the bucket cannot be listed.
        """
        control = Control(self._settings)
        now = clock.server_clock(control)
        repairs = self._repairs(lambda: datetime.fromtimestamp(now(), UTC))
        # AWS deletes only the version that was looked at, so there may be many between the look and the deletion.
        batch = PAGE if self._settings.on_aws else CAREFUL
        return Sweep(
            self._bucket.plain,
            self._bucket.pool,
            areas(self._layout, self._terms, batch=batch, thorough=thorough, adopt=adopt),
            repairs.remains,
            StaleUploads(control, self._layout),
            now=now,
            dry_run=dry_run,
        )

    def cleanup(self) -> None:
        """What Celery's daily task `celery.backend_cleanup` does: delete what has expired, abort uploads.

        Results are swept for ten minutes at most; a day's rest is the next day's. What another backend wrote stays.

        Raises:
            StoreError: the bucket cannot be listed.
        """
        swept = self.sweep().run(seconds=CLEANUP_SECONDS)
        logger.info("Cleanup of %s: %s", self._settings.uri, _summary(swept))


def _prefix(rule: Rule) -> str:
    where = rule["Filter"]
    return str(where.get("And", where)["Prefix"])


def _summary(swept: Swept) -> str:
    kinds = ", ".join(f"{kind} {extent.count}" for kind, extent in swept.deleted.items()) or "nothing"
    aborted = f", aborted unfinished uploads {swept.aborted}" if swept.aborted else ""
    unseen = f"; unfinished uploads were not looked at: {swept.unseen}" if swept.unseen else ""
    rest = "" if swept.complete else "; there is more, and time was up: `celery s3 sweep` goes through all of it"
    left = swept.foreign.count
    foreign = f"; {left} that another backend wrote stay: `celery s3 sweep --adopt` takes them" if left else ""
    return f"deleted {kinds} ({swept.size} bytes){aborted}{unseen}{foreign}{rest}"
