"""Spans, metrics and counts of a whole backend are those of the requests that were really made."""

from __future__ import annotations

from collections import Counter

import pytest
from celery.result import AsyncResult, GroupResult
from kombu.utils.uuid import uuid

from celery_s3.costs.prices import bill, price_table
from celery_s3.store.counting import difference

pytest.importorskip("opentelemetry.sdk")


@pytest.fixture
def spans(monkeypatch):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
def traced(counted, spans):
    app = counted(s3_backend_settings={"opentelemetry": True})
    spans.clear()
    return app


def test_each_request_is_a_span(traced, spans, proxy):
    """As many spans as requests, retries included; the span of a try that failed says so."""
    id = uuid()
    proxy.reset()
    proxy.fail("PUT", "slow_down")
    traced.backend.store_result(id, 1, "SUCCESS")
    assert traced.AsyncResult(id).get(timeout=10) == 1
    made = Counter(span.attributes["rpc.method"] for span in spans.get_finished_spans())
    assert made == {"PutObject": 2, "GetObject": 1}
    assert proxy.counts() == {"PUT": 2, "GET": 1}
    failed, landed, _ = spans.get_finished_spans()
    assert (failed.attributes["error.type"], failed.attributes["http.response.status_code"]) == ("Throttled", 503)
    assert not failed.status.is_ok
    assert "error.type" not in landed.attributes
    assert failed.attributes["aws.s3.key"].endswith(id)


def test_no_secret_in_a_span(traced, spans, proxy):
    """Neither keys of access nor values are told."""
    traced.backend.store_result(uuid(), "hush-hush", "SUCCESS")
    with pytest.raises(Exception, match="not stored"):
        proxy.fail("PUT", "signature_mismatch")
        traced.backend.store_result(uuid(), "hush-hush", "SUCCESS")
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "hush-hush" not in told
    assert proxy.settings()["aws_secret_access_key"] not in told


def test_a_group_is_read_below_its_caller(traced, spans):
    """The spans of results that are read at the same time belong to whoever wants them."""
    from opentelemetry import trace

    ids = [uuid() for _ in range(10)]
    for id in ids:
        traced.backend.store_result(id, 1, "SUCCESS")
    spans.clear()
    with trace.get_tracer("test").start_as_current_span("view"):
        GroupResult("g", [AsyncResult(id, app=traced) for id in ids], app=traced).get(timeout=10)
    *reads, view = spans.get_finished_spans()
    assert len(reads) == 10
    assert {span.parent.span_id for span in reads} == {view.context.span_id}


def test_off_by_default(counted, spans, stored):
    """Without the setting there is no span, whatever the application has set up."""
    assert stored(counted(), 1).get(timeout=10) == 1
    assert spans.get_finished_spans() == ()


def test_the_bill_of_this_process(counted, stored, proxy):
    """What a process has asked between two snapshots can be billed, verb by verb."""
    app = counted()
    before = app.backend.tally.snapshot()
    proxy.reset()
    proxy.fail("GET", "internal_error")
    assert stored(app, "x" * 1000).get(timeout=10) == "x" * 1000
    items = {
        item.verb: item for item in bill(difference(app.backend.tally.snapshot(), before), price_table()["s3-standard"])
    }
    assert {verb: item.requests for verb, item in items.items()} == dict(proxy.counts()) == {"PUT": 1, "GET": 2}
    assert items["GET"].retries == 1
    assert items["GET"].dollars == pytest.approx(8e-7)
    assert 1000 < items["PUT"].bytes_up == items["GET"].bytes_down


def test_log_fields(counted, caplog):
    """A warning about an object names it in a field of its own, for logs that are read by programs."""
    app, id = counted(), uuid()
    app.backend.set(app.backend.get_key_for_task(id), b"garbage")
    app.backend.store_result(id, ValueError("x"), "FAILURE")
    (record,) = [record for record in caplog.records if record.name == "celery_s3.results.write_once"]
    assert record.s3_key.endswith(id)
    assert record.getMessage() == f"The object {record.s3_key} is no result that this process can read."
