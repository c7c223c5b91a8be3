"""OpenTelemetry, where the setting `opentelemetry` asks for it: a span for each request, and the counters as metrics.

Only ``opentelemetry-api`` is needed (the extra ``celery-s3[otel]``); what becomes of spans and metrics is the business
of the SDK that the application sets up. Without one, nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import metrics, trace

from celery_s3.errors import ObjectMissing, PreconditionFailed, StoreError
from celery_s3.settings import Settings

from .api import Bucket, Entry, Object, Precondition
from .counting import NUMBERS, Tally

__all__ = ["Tracing", "measure"]

_NAME = "celery_s3"
#: Answers that the protocols expect: a result that is not there yet, another writer that was first.
_EXPECTED = (ObjectMissing, PreconditionFailed)


class Tracing:
    """A store that makes a span of each request of the store inside it, named and labelled as OpenTelemetry has S3."""

    def __init__(self, inner: Bucket, settings: Settings) -> None:
        self._inner = inner
        self._tracer = trace.get_tracer(_NAME)
        self._common = {"rpc.system": "aws-api", "rpc.service": "S3", "aws.s3.bucket": settings.bucket}

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        with self._span("PutObject", key):
            return self._inner.put(key, body, precondition=precondition, metadata=metadata, content_type=content_type)

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        with self._span("GetObject", key):
            return self._inner.get(key, start=start, length=length, if_match=if_match)

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str = "") -> str:
        with self._span("CreateMultipartUpload", key):
            return self._inner.create_upload(key, metadata=metadata, content_type=content_type)

    def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        with self._span("UploadPart", key):
            return self._inner.put_part(key, upload_id, number, body)

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], *, precondition: Precondition = None
    ) -> str:
        with self._span("CompleteMultipartUpload", key):
            return self._inner.complete_upload(key, upload_id, etags, precondition=precondition)

    def abort_upload(self, key: str, upload_id: str) -> None:
        with self._span("AbortMultipartUpload", key):
            self._inner.abort_upload(key, upload_id)

    def delete(self, key: str) -> None:
        with self._span("DeleteObject", key):
            self._inner.delete(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        with self._span("DeleteObjects"):
            self._inner.delete_many(keys)

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        with self._span("DeleteObjects"):
            return self._inner.delete_unchanged(versions)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        """One span for the whole listing; what the caller does in between is not inside it."""
        span = self._start("ListObjectsV2")
        try:
            yield from self._inner.list(prefix, start_after=start_after)
        except StoreError as exc:
            _failed(span, exc)
            raise
        finally:
            span.end()

    def close(self) -> None:
        self._inner.close()

    @contextmanager
    def _span(self, operation: str, key: str = "") -> Iterator[None]:
        span = self._start(operation, key)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except StoreError as exc:
                _failed(span, exc)
                raise

    def _start(self, operation: str, key: str = "") -> trace.Span:
        labels = self._common | {"rpc.method": operation} | ({"aws.s3.key": key} if key else {})
        return self._tracer.start_span(f"S3.{operation}", kind=trace.SpanKind.CLIENT, attributes=labels)


def _failed(span: trace.Span, error: StoreError) -> None:
    span.set_attribute("error.type", type(error).__name__)
    if error.status is not None:
        span.set_attribute("http.response.status_code", error.status)
    if not isinstance(error, _EXPECTED):
        span.set_status(trace.StatusCode.ERROR, error.what)


#: Name, unit, description, and what is told of a verb's line: labels and number.
_Told = Iterable[tuple[dict[str, str], int]]
_METRICS: tuple[tuple[str, str, str, Callable[[Mapping[str, int]], _Told]], ...] = (
    ("requests", "{request}", "Requests made", lambda line: [({}, line["requests"])]),
    ("retries", "{retry}", "Requests tried again", lambda line: [({}, line["retries"])]),
    (
        "io",
        "By",
        "Bytes of bodies",
        lambda line: [
            ({"network.io.direction": "transmit"}, line["bytes_up"]),
            ({"network.io.direction": "receive"}, line["bytes_down"]),
        ],
    ),
    (
        "errors",
        "{error}",
        "Answers that were errors, by class of celery_s3.errors",
        lambda line: [({"error.type": name}, number) for name, number in line.items() if name not in NUMBERS],
    ),
)


def measure(tally: Tally, settings: Settings) -> None:
    """Let OpenTelemetry's meter read the counters of the process it runs in, whenever its reader wants them."""
    meter = metrics.get_meter(_NAME)

    def observe(told: Callable[[Mapping[str, int]], _Told]) -> Callable[[Any], Iterator[metrics.Observation]]:
        def observations(_options: Any) -> Iterator[metrics.Observation]:
            for verb, line in tally.snapshot().items():
                common = {"aws.s3.bucket": settings.bucket, f"{_NAME}.verb": verb}
                yield from (metrics.Observation(number, common | labels) for labels, number in told(line))

        return observations

    for name, unit, description, told in _METRICS:
        meter.create_observable_counter(f"{_NAME}.{name}", [observe(told)], unit, description)
