"""When results expire, and what deletes them: the bucket's lifecycle rules, Celery's daily cleanup, a sweep."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states

from celery_s3.chords import Chords
from celery_s3.chords.repair import Repair
from celery_s3.errors import StoreError
from celery_s3.keys import Layout
from celery_s3.metadata import term_asked
from celery_s3.settings import Settings
from celery_s3.store.api import Store
from celery_s3.store.counting import PAGE
from celery_s3.store.parallel import Pool

from .terms import Terms

# The rest is imported where it is used, by commands, beat and the daily cleanup: it would cost every worker 10 ms.
if TYPE_CHECKING:
    from .rules import Rule
    from .sweep import Sweep, Swept

__all__ = ["ExpiryHooks"]

logger = logging.getLogger(__name__)

#: Seconds that the daily cleanup sweeps: well below what a broker waits for a task to be acknowledged.
CLEANUP_SECONDS = 600.0


class ExpiryHooks:
    """The part of the backend that knows when something expires; what it needs of the rest is declared here.

    Attributes:
        terms: how long everything lives.
    """

    app: Any
    terms: Terms
    settings: Settings
    pool: Pool
    chords: Chords
    layout: Layout
    supports_failure_expires = True
    _plain_store: Store
    _native_chords: Callable[[], bool]
    _repairs: Callable[[Callable[[], datetime]], Repair]

    def _term_of(self, state: str, request: Any) -> float | None:
        """The term that a result has of its own: its call's, else that of failures; ``None`` where it has none."""
        asked = term_asked(request)
        if asked is None and state == states.FAILURE and self.terms.failures != self.terms.results:
            return self.terms.failures or 0.0
        return asked

    # -- lifecycle rules

    def lifecycle_rules(self, *, versioned: bool = False) -> list[Rule]:
        """The rules that the bucket should have.

        Arguments:
            versioned: the bucket keeps versions.
        """
        from .rules import wanted

        return wanted(self.layout, self.terms, by_tag=self.settings.expiry_tags, versioned=versioned)

    @cached_property
    def supports_autoexpire(self) -> bool:
        """Whether the bucket's lifecycle rules delete all results and files: then `celery beat` schedules no cleanup.

        Asked once in a process, in one request that only beat makes; ``False`` where that fails.
        """
        from celery_s3.store.clients.control import Control

        from .rules import covers

        results = (self.layout.results, self.layout.files, self.layout.groups)
        rules = [rule for rule in self.lifecycle_rules() if "Expiration" in rule and _prefix(rule) in results]
        if len({_prefix(rule) for rule in rules}) < len(results):
            return False  # some live for ever, and no tag tells them from others
        try:
            return covers(Control(self.settings).lifecycle(), rules)
        except Exception as exc:  # noqa: BLE001 (beat must start, whatever this is)
            why = exc if isinstance(exc, StoreError) else type(exc).__name__
            logger.info("celery.backend_cleanup is scheduled, as the lifecycle rules could not be read: %s", why)
            return False

    # -- deleting

    def sweep(self, *, dry_run: bool = False, thorough: bool = False, mend: bool = False) -> Sweep:
        """A sweep, ready to run; asks the server for its time, in one request.

        Arguments:
            dry_run: everything but deleting and aborting.
            thorough: look at every result, however young: it may have a shorter term of its own.
            mend: mend stuck chords on the way.

        Raises:
            StoreError: the bucket cannot be listed.
        """
        from celery_s3.store.clients.control import Control

        from .clock import server_clock
        from .sweep import CAREFUL, Sweep, areas
        from .uploads import StaleUploads

        control = Control(self.settings)
        now = server_clock(control)
        repairs = self._repairs(lambda: datetime.fromtimestamp(now(), UTC))
        # On AWS what was written after the look is certain to stay, however long it has been.
        batch = PAGE if self.settings.on_aws else CAREFUL
        return Sweep(
            self._plain_store,
            self.pool,
            areas(self.layout, self.terms, batch=batch, thorough=thorough),
            lambda: repairs.remains(mend=mend),
            StaleUploads(control, self.layout),
            now=now,
            dry_run=dry_run,
        )

    def cleanup(self) -> None:
        """What Celery's daily task `celery.backend_cleanup` does: mend chords, delete what has expired, abort uploads.

        Results are swept for ten minutes at most; a day's rest is the next day's.
        """
        swept = self.sweep(mend=self._native_chords()).run(seconds=CLEANUP_SECONDS)
        logger.info("Cleanup of %s: %s", self.settings.uri, _told(swept))


def _prefix(rule: Rule) -> str:
    where = rule["Filter"]
    return str(where.get("And", where)["Prefix"])


def _told(swept: Swept) -> str:
    kinds = ", ".join(f"{kind} {extent.count}" for kind, extent in swept.deleted.items()) or "nothing"
    aborted = f", aborted unfinished uploads {swept.aborted}" if swept.aborted else ""
    unseen = f"; unfinished uploads were not looked at: {swept.unseen}" if swept.unseen else ""
    rest = "" if swept.complete else "; there is more, and time was up: `celery s3 sweep` goes through all of it"
    return f"deleted {kinds} ({swept.size} bytes){aborted}{unseen}{rest}"
