"""The bucket that the settings describe: the wrappers in their order, composed in one place."""

from __future__ import annotations

from dataclasses import dataclass

from celery_s3.errors import ConfigurationError
from celery_s3.notices.notice import Noticing
from celery_s3.settings import Settings
from celery_s3.store.api import Bucket, Store, Writer
from celery_s3.store.counting import Counting, Tally
from celery_s3.store.parallel import Pool
from celery_s3.store.probe import ConditionalWrites, Preconditions
from celery_s3.store.retrying import Retrying, RetryPolicy
from celery_s3.store.routing import Routing
from celery_s3.store.uploads import MultipartWriter

__all__ = ["Opened", "open_store"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A bucket and what belongs to it; made without any request, to be used in this process and those it forks.

    Attributes:
        store: makes the requests, and tries again.
        plain: the same, and leaves seals unopened.
        writer: writes objects of any size.
        tally: what this process has asked.
        conditional: whether conditional writes work here.
        pool: for reading in parallel.
    """

    store: Store
    plain: Store
    writer: Writer
    tally: Tally
    conditional: ConditionalWrites
    pool: Pool

    def close(self) -> None:
        """Let go of connections and threads; everything may be used again."""
        self.pool.close()
        self.store.close()


def open_store(settings: Settings) -> Opened:
    """The bucket that the settings describe.

    Raises:
        ConfigurationError: `seal_keys` or `opentelemetry` needs a package that is missing.
    """
    tally = Tally()
    counting: Bucket = Counting(Routing(settings), tally)
    pool = Pool(settings.concurrency)
    if settings.opentelemetry:
        counting = _traced(counting, tally, settings)
    retrying = Retrying(
        counting,
        policy=RetryPolicy(settings.max_retries),
        tally=tally,
        missing_as_403=settings.missing_as_403,
        base=settings.base,
    )
    # The probe is no secret, and is shared with processes that have no keys.
    conditional = ConditionalWrites(settings, retrying)
    plain: Bucket = retrying if settings.on_aws else Preconditions(retrying, conditional.verdict)
    # Not every server keeps the condition of a completion.
    multipart = MultipartWriter(plain, pool, look_before=not settings.on_aws)
    store, writer = _sealed(Noticing(plain), multipart, settings)
    return Opened(store, plain, writer, tally, conditional, pool)


def _traced(store: Bucket, tally: Tally, settings: Settings) -> Bucket:
    try:
        from celery_s3.store import tracing  # imported where it is used
    except ImportError as exc:
        raise ConfigurationError(
            f"`opentelemetry` needs a package that is missing ({exc}): `pip install 'celery-s3[otel]'`, or unset it."
        ) from exc
    tracing.measure(tally, settings)
    return tracing.Tracing(store, settings)


def _sealed(store: Store, writer: Writer, settings: Settings) -> tuple[Store, Writer]:
    if not settings.seal_keys:
        return store, writer
    from celery_s3.sealing.wrapper import sealing  # imported where it is used
    from celery_s3.sealing.writer import SealingWriter

    sealed = sealing(store, settings)
    return sealed, SealingWriter(writer, sealed)
