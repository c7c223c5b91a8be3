"""What is told of the counters: log lines, the workers' answers, metrics and spans."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from billiard import process
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown, worker_ready, worker_shutdown

import celery_s3.store
from celery_s3.bucket import open_store
from celery_s3.costs import workers
from celery_s3.costs.workers import COMMAND, Reporter, ask_workers, summary
from celery_s3.errors import ConfigurationError, NoRemoteControl, PreconditionFailed, Throttled
from celery_s3.settings import Settings
from celery_s3.store.counting import CHILDREN, Counting, Tally
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool

#: Python 3.12 warns of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SETTINGS = Settings(bucket="results")


@pytest.fixture(autouse=True)
def nobody_else_listens(monkeypatch):
    """The reporters of other tests' backends do not hear what happens here."""
    for signal in (worker_process_shutdown, worker_shutdown):
        monkeypatch.setattr(signal, "receivers", [])
        monkeypatch.setattr(signal, "use_caching", False)


@pytest.fixture
def tally():
    return Tally()


def child(index, work):
    """Fork as a pool does, and work in the child; its exit code is what ``work`` returns."""
    pid = os.fork()
    if pid == 0:
        process.current_process().index = index
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counting(tally, number):
    """A child's work: to count so many requests, and to see its own alone."""

    def work():
        for _ in range(number):
            tally.count("PUT", up=2)
        return 0 if tally.snapshot()["PUT"]["requests"] == number == tally.worker_snapshot()["PUT"]["requests"] else 1

    return work


# -- the numbers of a worker


def test_children_count_with_their_parent(tally):
    """The main process knows what its children have asked, ended ones and those in their places included."""
    tally.count("PUT", up=1)
    assert [child(index, counting(tally, 3)) for index in (0, 1, 0, CHILDREN - 1)] == [0, 0, 0, 0]
    assert tally.worker_snapshot()["PUT"] == {"requests": 13, "retries": 0, "bytes_up": 25, "bytes_down": 0}
    assert tally.snapshot()["PUT"]["requests"] == 1
    assert len(tally.processes()) == 4


def test_a_killed_child_is_counted(tally):
    """What a child has asked is known, however it ends."""

    def work():
        tally.count("GET")
        os.kill(os.getpid(), 9)

    assert child(0, work) == -9
    assert tally.worker_snapshot()["GET"]["requests"] == 1


@pytest.mark.parametrize("index", [None, CHILDREN])
def test_others_count_for_themselves(tally, index):
    """A process that is not of the pool, or one too many, never counts in another's place."""
    assert child(index, counting(tally, 3)) == 0
    assert tally.worker_snapshot() == {}


def test_a_grandchild_counts_for_itself(tally):
    """What a task forks inherits the name of its worker process, and not its place."""

    def work():
        tally.count("PUT")
        return child(0, counting(tally, 2)) or (tally.snapshot()["PUT"]["requests"] != 1)

    assert child(0, work) == 0
    assert tally.worker_snapshot()["PUT"]["requests"] == 1


def test_a_child_joins_before_its_first_request(tally):
    """A child says that it is there when it starts, so that a missing one is noticed."""
    reporter = Reporter(tally, SETTINGS)

    def work():
        worker_process_init.send(sender="w")
        return 0

    assert child(2, work) == 0
    assert len(tally.processes()) == 2
    del reporter


# -- the log


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "celery_s3.costs.workers")
    return caplog


def test_a_worker_tells_once(tally, log):
    """At a worker's end one line has the sum over its processes and the dollars, as text and as fields."""
    reporter = Reporter(tally, SETTINGS)
    tally.count("PUT", up=100)
    assert child(0, counting(tally, 3)) == 0
    tally.count("PUT", error=Throttled())
    tally.retried("PUT")
    worker_shutdown.send(sender="w")
    worker_shutdown.send(sender="w")
    (record,) = log.records
    assert record.getMessage() == (
        "S3 requests of this worker: 5 PUT; 1 retries; 1 throttles; 106 bytes up, 0 down;"
        " $0.000025 at the list price of S3 Standard, 2026-01-01"
    )
    assert (record.s3_requests, record.s3_retries, record.s3_throttles, record.s3_bytes_up) == (5, 1, 1, 106)
    assert record.s3_dollars == pytest.approx(25e-6)
    del reporter


def test_nothing_asked_nothing_told(tally, log):
    """A worker that has asked for nothing has nothing to tell."""
    reporter = Reporter(tally, SETTINGS)
    worker_shutdown.send(sender="w")
    assert not log.records
    del reporter


def test_a_child_tells_where_its_parent_cannot(tally, log):
    """A child whose main process counts it leaves the telling to it; another tells for itself."""
    reporter = Reporter(tally, SETTINGS)

    def work():
        tally.count("PUT")
        worker_process_shutdown.send(sender="w", pid=1, exitcode=0)
        return len(log.records)

    def by_itself():
        own = Tally()
        reporter = Reporter(own, SETTINGS)
        own.count("PUT")
        worker_process_shutdown.send(sender="w", pid=1, exitcode=0)
        del reporter
        return len(log.records)

    assert child(0, work) == 0
    assert child(None, work) == 1
    assert child(0, by_itself) == 1
    del reporter


def test_express_has_its_own_price():
    """A directory bucket is billed as what it is."""
    text, _ = summary({}, Settings(bucket="results--use1-az4--x-s3"))
    assert "S3 Express One Zone" in text
    assert text.startswith("none; ")


# -- asking


def test_workers_have_the_command(tally):
    """A worker that is ready knows the command; its answer can travel as JSON."""
    from celery.worker.control import Panel

    worker_ready.send(sender="w")
    tally.count("PUT")
    pool = SimpleNamespace(info={"max-concurrency": 2})
    state = SimpleNamespace(
        app=SimpleNamespace(backend=SimpleNamespace(tally=tally)), consumer=SimpleNamespace(pool=pool)
    )
    answer = Panel.data[COMMAND](state)
    assert answer == {"counted": tally.snapshot(), "pid": os.getpid(), "uncounted": 0}
    other = SimpleNamespace(app=SimpleNamespace(backend=object()))
    assert "not celery-s3's" in Panel.data[COMMAND](other)["error"]


def test_processes_out_of_sight_are_told(tally, monkeypatch):
    """The answer says how many of the pool's processes it does not include."""
    monkeypatch.setattr(workers, "prefork_parent", lambda: True)
    pool = SimpleNamespace(info={"processes": [os.getpid(), 1, 2]})
    state = SimpleNamespace(
        app=SimpleNamespace(backend=SimpleNamespace(tally=tally)), consumer=SimpleNamespace(pool=pool)
    )
    assert workers._answer(state)["uncounted"] == 2


def test_brokers_without_fanout():
    """Where a broker cannot reach all workers, nothing is sent: a reply queue would stay behind."""
    with pytest.raises(NoRemoteControl, match="S3 requests of this worker"):
        ask_workers(Celery("asking", broker="sqs://", set_as_current=False))


def test_a_broker_that_is_down():
    """Where the broker does not answer, the error says so, without its password."""
    app = Celery("asking", broker="redis://:hush@127.0.0.1:1/0", set_as_current=False)
    app.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    with pytest.raises(NoRemoteControl, match="does not answer") as raised:
        ask_workers(app)
    assert "hush" not in str(raised.value)


def test_nobody_answers():
    """No worker, no answer."""
    assert ask_workers(Celery("asking", broker="memory://", set_as_current=False), timeout=0.1) == {}


# -- OpenTelemetry


@pytest.fixture
def otel():
    pytest.importorskip("opentelemetry.sdk")
    from celery_s3.store import tracing as otel

    return otel


@pytest.fixture
def spans(otel, monkeypatch):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel.trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
def memory():
    return MemoryStore()


def test_a_span_for_each_request(otel, spans, memory):
    """Every verb makes one span, named and labelled as OpenTelemetry has it for S3."""
    store = otel.Tracing(memory, SETTINGS)
    store.put("k", b"1")
    assert store.get("k").body == b"1"
    assert [entry.key for entry in store.list("k")] == ["k"]
    store.delete("k")
    store.delete_many(["k"])
    upload_id = store.create_upload("k")
    store.complete_upload("k", upload_id, [store.put_part("k", upload_id, 1, b"1")])
    store.abort_upload("k", upload_id)
    made = spans.get_finished_spans()
    operations = ["PutObject", "GetObject", "ListObjectsV2", "DeleteObject", "DeleteObjects"]
    operations += ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"]
    assert [span.name for span in made] == [f"S3.{operation}" for operation in operations]
    assert dict(made[0].attributes) == {
        "rpc.system": "aws-api",
        "rpc.service": "S3",
        "rpc.method": "PutObject",
        "aws.s3.bucket": "results",
        "aws.s3.key": "k",
    }


@pytest.mark.parametrize(("error", "is_error"), [(PreconditionFailed("", status=412), False), (Throttled("x"), True)])
def test_errors_in_spans(otel, spans, memory, error, is_error):
    """A span says which error a request ended with; what the protocols expect does not make it a failed one."""
    memory.faults.append(Fault(error, times=-1))
    store = otel.Tracing(memory, SETTINGS)
    for call in (lambda: store.put("k", b"1"), lambda: list(store.list("k"))):
        with pytest.raises(type(error)):
            call()
        span = spans.get_finished_spans()[-1]
        assert span.attributes["error.type"] == type(error).__name__
        assert span.attributes.get("http.response.status_code") == error.status
        assert span.status.is_ok != is_error
        assert not span.events


def test_a_listing_left_early_ends_its_span(otel, spans, memory):
    """Whoever stops reading a listing leaves no open span behind."""
    for key in "ab":
        memory.put(key, b"")
    entries = otel.Tracing(memory, SETTINGS).list("")
    next(entries)
    entries.close()
    assert len(spans.get_finished_spans()) == 1


def test_threads_trace_under_their_caller(otel, spans, memory):
    """What is read at the same time stands below the span of who wants it."""
    from opentelemetry import trace

    memory.put("k", b"")
    store, pool = otel.Tracing(memory, SETTINGS), Pool(4)
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span("caller"):
        pool.map(store.get, ["k"] * 5)
    pool.close()
    *reads, caller = spans.get_finished_spans()
    assert {span.parent.span_id for span in reads} == {caller.context.span_id}


def test_metrics(otel, monkeypatch):
    """The counters are metrics, by verb and bucket, read when the reader wants them."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(otel.metrics, "get_meter", provider.get_meter)
    memory, tally = MemoryStore(), Tally()
    otel.measure(tally, SETTINGS)
    store = Counting(memory, tally)
    store.put("k", b"12")
    memory.faults.append(Fault(Throttled("x")))
    with pytest.raises(Throttled):
        store.get("k")
    store.get("k")
    found = {}
    (resource,) = reader.get_metrics_data().resource_metrics
    for metric in resource.scope_metrics[0].metrics:
        for point in metric.data.data_points:
            labels = dict(point.attributes)
            assert labels.pop("aws.s3.bucket") == "results"
            found[metric.name, *sorted(labels.values())] = point.value
    assert {key: value for key, value in found.items() if value} == {
        ("celery_s3.requests", "PUT"): 1,
        ("celery_s3.requests", "GET"): 2,
        ("celery_s3.io", "PUT", "transmit"): 2,
        ("celery_s3.io", "GET", "receive"): 2,
        ("celery_s3.errors", "GET", "Throttled"): 1,
    }
    provider.shutdown()


def test_opentelemetry_is_missing(monkeypatch):
    """Where the setting asks for it and the package is missing, the error names the extra."""
    monkeypatch.delitem(sys.modules, "celery_s3.store.tracing", raising=False)
    monkeypatch.delattr(celery_s3.store, "tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"celery-s3\[otel\]"):
        open_store(Settings(bucket="results", opentelemetry=True))


def test_a_backend_without_it_pays_nothing():
    """Neither OpenTelemetry nor the price table is imported by a backend that was not asked for them."""
    code = (
        "import sys; from celery import Celery;"
        "Celery('x', backend='celery-s3://bucket').backend;"
        "names = ('opentelemetry', 'celery_s3.costs.prices', 'celery_s3.costs.model', 'celery.worker.control');"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
