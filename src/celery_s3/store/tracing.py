"""OpenTelemetry, where the setting `opentelemetry` asks for it: a span for each request, and the counters as metrics.

Only ``opentelemetry-api`` is needed (the extra ``celery-s3[otel]``); what becomes of spans and metrics is the business
of the SDK that the application sets up. Without one, nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from opentelemetry import metrics, trace

from celery_s3.errors import ObjectMissing, PreconditionFailed, StoreError
from celery_s3.settings import Settings

from .api import Bucket, Store
from .counting import NUMBERS, Tally
from .requests import ListPage, Request

__all__ = ["Tracing", "measure"]

A = TypeVar("A")

_NAME = "celery_s3"
#: Answers that the protocols expect: a result that is not there yet, another writer that was first.
_EXPECTED = (ObjectMissing, PreconditionFailed)


class Tracing(Bucket):
    """A store that makes a span of each request of the store inside it, named and labelled as OpenTelemetry has S3."""

    def __init__(self, inner: Store, settings: Settings) -> None:
        self._inner = inner
        self._tracer = trace.get_tracer(_NAME)
        self._common = {"rpc.system": "aws-api", "rpc.service": "S3", "aws.s3.bucket": settings.bucket}

    def send(self, request: Request[A]) -> A:
        """Pass the request on, inside a span of its own."""
        labels = self._common | {"rpc.method": request.action}
        if request.key and not isinstance(request, ListPage):
            labels["aws.s3.key"] = request.key
        with self._tracer.start_as_current_span(
            f"S3.{request.action}",
            kind=trace.SpanKind.CLIENT,
            attributes=labels,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                return self._inner.send(request)
            except StoreError as exc:
                _failed(span, exc)
                raise

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()


def _failed(span: trace.Span, error: StoreError) -> None:
    span.set_attribute("error.type", type(error).__name__)
    if error.status is not None:
        span.set_attribute("http.response.status_code", error.status)
    if not isinstance(error, _EXPECTED):
        span.set_status(trace.StatusCode.ERROR, error.what)


#: One verb's numbers of one metric, each with its labels.
_Points = Iterable[tuple[dict[str, str], int]]
_METRICS: tuple[tuple[str, str, str, Callable[[Mapping[str, int]], _Points]], ...] = (
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

    def observe(points: Callable[[Mapping[str, int]], _Points]) -> Callable[[Any], Iterator[metrics.Observation]]:
        def observations(_options: Any) -> Iterator[metrics.Observation]:
            for verb, line in tally.snapshot().items():
                common = {"aws.s3.bucket": settings.bucket, f"{_NAME}.verb": verb}
                yield from (metrics.Observation(number, common | labels) for labels, number in points(line))

        return observations

    for name, unit, description, points in _METRICS:
        meter.create_observable_counter(f"{_NAME}.{name}", [observe(points)], unit, description)
