"""An S3 bucket: two clients behind one seam, and what is wrapped around them."""

from __future__ import annotations

from dataclasses import dataclass

from celery_s3.settings import Settings

from . import situation
from .api import Store
from .counting import Counting, Tally
from .parallel import Pool
from .probe import ConditionalWrites
from .retrying import Retrying, policy_for
from .routing import Routing

__all__ = ["Opened", "open_store"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A bucket and what belongs to it; made without any request, to be used in this process and those it forks.

    Attributes:
        store: makes the requests, and tries again.
        tally: what this process has asked.
        conditional: whether conditional writes work here.
        pool: for reading in parallel.
    """

    store: Store
    tally: Tally
    conditional: ConditionalWrites
    pool: Pool

    def close(self) -> None:
        """Let go of connections and threads; everything may be used again."""
        self.pool.close()
        self.store.close()


def open_store(settings: Settings) -> Opened:
    """The bucket that the settings describe."""
    tally = Tally()
    store = Retrying(
        Counting(Routing(settings), tally),
        policy=lambda: policy_for(settings, prefork_parent=situation.prefork_parent()),
        tally=tally,
        missing_as_403=settings.missing_as_403,
        base=settings.base,
    )
    return Opened(store, tally, ConditionalWrites(settings, store), Pool(settings.concurrency))
