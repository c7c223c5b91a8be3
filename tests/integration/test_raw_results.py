"""Results that are bytes: stored as they are, under any serializer, with everything that any result can do."""

from __future__ import annotations

import base64
import json

import pytest
from celery import chord, states
from celery.app.trace import build_tracer
from celery.bin.base import CLIContext
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.serialization import register, unregister
from kombu.utils.uuid import uuid

from celery_s3.cli import s3
from celery_s3.codec import raw
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC
from celery_s3.codec.lazy import LazyMeta
from celery_s3.errors import UnreadableResult
from celery_s3.results.write_once import HEAD_BYTES

ALL = bytes(range(256))
TEXTUAL = ["json", "yaml", "s3+json", "typed+json"]
SEALED = {"s3_backend_settings": {"seal_keys": ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}}


def object_of(app, result):
    return app.backend.store.get(app.backend._full(app.backend.get_key_for_task(result.id)))


@pytest.mark.parametrize("serializer", TEXTUAL)
@pytest.mark.parametrize("value", [b"", b"text", ALL, ALL * 1000], ids=len)
def test_round_trip(counted, stored, spends, serializer, value):
    """Bytes come back as they were, in a PUT and a GET or two, and stand in the object as they are."""
    app = counted(result_serializer=serializer, result_accept_content=[serializer])
    with spends(PUT=1):
        result = stored(app, value)
    with spends(GET=1 if len(value) < HEAD_BYTES else 2):
        found = result.get(timeout=5)
        assert (type(found), found) == (bytes, value)
    stands = object_of(app, result)
    assert stands.content_type == raw.CONTENT_TYPE
    assert stands.body.endswith(value)
    assert stands.size - len(value) < 400


@pytest.mark.parametrize("serializer", ["pickle", "msgpack"])
def test_where_bytes_stay_bytes_anyway(counted, stored, serializer):
    """A serializer that keeps bytes as they are makes what it has always made."""
    app = counted(result_serializer=serializer, result_accept_content=[serializer])
    result = stored(app, ALL)
    assert result.get(timeout=5) == ALL
    assert object_of(app, result).content_type == app.backend.content_type


@pytest.fixture
def scrambling():
    """The name of a serializer of somebody's own, which makes text that not everybody can read."""

    def encode(data):
        text = json.dumps(data, default=lambda value: {"bytes": value.hex()})
        return base64.b64encode(text.encode()[::-1]).decode()

    def decode(payload):
        text = base64.b64decode(payload)[::-1]
        return json.loads(text, object_hook=lambda o: bytes.fromhex(o["bytes"]) if "bytes" in o else o)

    register("scrambling", encode, decode, "application/x-scrambling", "utf-8")
    yield "scrambling"
    unregister("scrambling")


def test_no_way_round_a_serializer(counted, stored, scrambling):
    """A serializer that may sign or encrypt gets the bytes as well; bytes that stand beside it are not accepted."""
    app = counted(result_serializer=scrambling, result_accept_content=[scrambling])
    result = stored(app, b"secret")
    assert result.get(timeout=5) == b"secret"
    stands = object_of(app, result)
    assert stands.content_type == "application/x-scrambling"
    assert b"secret" not in stands.body
    for content_type in ("application/x-scrambling", "application/json"):
        meta = app.backend._encode({"status": "SUCCESS", "result": 6})[2]
        forged = raw.preamble(meta if "scrambling" in content_type else '{"status":"SUCCESS","result":6}', content_type)
        app.backend.store.put(stands.key, forged + b"forged", content_type=raw.CONTENT_TYPE)
        with pytest.raises(UnreadableResult):
            counted(result_serializer=scrambling, result_accept_content=[scrambling]).AsyncResult(result.id).get()


@pytest.mark.parametrize(
    ("value", "state"),
    [
        ([ALL], "SUCCESS"),
        ({"a": b"x"}, "SUCCESS"),
        (b"half done", "PROGRESS"),
        (type("B", (bytes,), {})(b"x"), "SUCCESS"),
    ],
)
def test_what_is_not_raw(counted, stored, value, state):
    """Bytes inside of something else, of another state, or of a class of their own, are the serializer's business."""
    app = counted()
    result = stored(app, value, state)
    assert object_of(app, result).content_type == "application/json"
    assert app.AsyncResult(result.id).result == value


def test_what_celery_tells_of_it(counted, stored, run):
    """All of the meta is there: children, group, parent, and with `result_extended` name, arguments and worker."""
    app = counted(result_extended=True)

    @app.task
    def job(number):
        return ALL[:number]

    result = app.AsyncResult(run(job, 7, request={"parent_id": "p", "group": "g"}))
    assert result.get(timeout=5) == ALL[:7]
    assert (result.name, list(result.args), result.worker, result.queue) == (job.name, [7], "here", "jobs")
    assert (result.children, result.date_done is None) == ([], False)
    meta = app.backend.get_task_meta(result.id)
    assert (meta["group_id"], meta["parent_id"], meta["task_id"]) == ("g", "p", result.id)


@pytest.mark.parametrize(
    "conf", [{}, {"result_compression": "gzip"}, SEALED, {"result_compression": "gzip", **SEALED}], ids=repr
)
@pytest.mark.parametrize("kind", ["raw", "text"])
def test_state_downloads_no_body(counted, stored, proxy, kind, conf):
    """State, readiness, existence and a group's progress cost 64 KiB, raw, compressed or sealed as it may be."""
    app = counted(**conf)
    noise = "".join(uuid() for _ in range(10_000))
    result = stored(app, noise.encode() if kind == "raw" else noise)
    group = app.GroupResult("g", [app.AsyncResult(result.id)])
    questions = (
        lambda: app.AsyncResult(result.id).state == "SUCCESS",
        lambda: app.AsyncResult(result.id).ready(),
        lambda: app.backend.task_result_exists(result.id),
        lambda: group.completed_count() == 1,
        lambda: app.GroupResult("g", [app.AsyncResult(result.id)]).successful(),
    )
    for asks in questions:
        proxy.reset()
        assert asks()
        assert [record.kind for record in proxy.records()] == ["GET"]
        assert proxy.records()[0].received <= HEAD_BYTES + 1024
    assert group.get(timeout=5) == [noise.encode() if kind == "raw" else noise]


def test_lazy(counted, stored):
    """A large one is known before it is fetched, and can be pickled and copied like any."""
    app = counted()
    result = stored(app, ALL * 1000)
    meta = app.backend.get_task_meta(result.id)
    assert isinstance(meta, LazyMeta)
    assert meta.partial
    assert meta.copy()["result"] == ALL * 1000
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"


def test_a_preamble_that_is_large_itself(counted, stored):
    """Where all that is told of a task is larger than the first GET, its bytes are found behind it."""
    app = counted(result_extended=True)
    result = stored(app, ALL, args=["x" * 2 * HEAD_BYTES], kwargs={})
    assert app.AsyncResult(result.id).get(timeout=5) == ALL


def test_write_once(counted, stored):
    """Bytes are final like any SUCCESS, and nothing but bytes takes the place of a state."""
    app, other = counted(), counted()
    result = stored(app, ALL)
    stored(other, b"late", id=result.id)
    stored(other, KeyError("late"), states.FAILURE, id=result.id)
    assert app.AsyncResult(result.id).get(timeout=5) == ALL


def test_other_settings(counted, stored):
    """Who reads with another serializer decodes what it accepts, and nothing else."""
    result = stored(counted(result_serializer="yaml", result_accept_content=["yaml"]), ALL)
    reader = counted(result_serializer="json", result_accept_content=["json", "yaml"])
    assert reader.AsyncResult(result.id).get(timeout=5) == ALL
    strict = counted(result_serializer="json", result_accept_content=["json"])
    with pytest.raises(UnreadableResult, match="untrusted content of type yaml"):
        strict.AsyncResult(result.id).get(timeout=5)


@pytest.mark.parametrize(
    "body",
    [raw.MAGIC, raw.MAGIC + b"x", raw.preamble('{"status": "SUCCESS", "result": 9}', "application/json") + b"cut"],
)
def test_garbage(counted, body):
    """An object that is cut, or no result at all, is an error that names it."""
    app, id = counted(), uuid()
    key = app.backend._full(app.backend.get_key_for_task(id))
    app.backend.store.put(key, body, content_type=raw.CONTENT_TYPE)
    with pytest.raises(UnreadableResult, match=key):
        app.AsyncResult(id).get(timeout=5)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(value=st.binary(max_size=200))
def test_any_bytes(counted, stored, value):
    """Whatever bytes a task returns are what its caller gets, compressed or not."""
    for app in counted(), counted(result_compression="gzip", s3_backend_settings={"compression_threshold": 0}):
        result = stored(app, value * 10)
        assert app.AsyncResult(result.id).get(timeout=5) == value * 10


def test_compressed(counted, stored):
    """Bytes that become smaller are compressed together with their preamble."""
    app = counted(result_compression="gzip")
    result = stored(app, ALL * 1000)
    assert object_of(app, result).body.startswith(COMPRESSED_PAYLOAD_MAGIC)
    assert object_of(app, result).size < 10_000
    assert app.AsyncResult(result.id).get(timeout=5) == ALL * 1000


def test_in_groups(counted, stored):
    """A group's bytes come together, large ones too."""
    app = counted()
    values = [b"", ALL, ALL * 1000, b"x"]
    assert app.GroupResult("g", [stored(app, value) for value in values]).get(timeout=5) == values


def test_in_chords(counted):
    """A header's bytes are bytes in the arguments of the body, and the body's own result is raw."""
    app, called = counted(), []

    @app.task(name="part")
    def part(number):
        return ALL[:number]

    @app.task(name="joined")
    def joined(parts):
        called.append(parts)
        return b"".join(parts)

    result = chord([part.s(1), part.s(256)], joined.s()).apply_async()
    drain(app)
    assert called == [[ALL[:1], ALL]]
    assert result.get(timeout=5) == ALL[:1] + ALL
    assert object_of(app, result).content_type == raw.CONTENT_TYPE


def drain(app):
    """Do what a worker's child does with all messages, and with those that come of it."""
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        queue.declare()
        while (message := queue.get(no_ack=True)) is not None:
            args, kwargs, embedded = message.payload
            task, request = app.tasks[message.headers["task"]], {**message.headers, **embedded, "delivery_info": {}}
            build_tracer(task.name, task, app=app)(message.headers["id"], args, kwargs, request)


def test_plain_results_are_what_they_were(counted, stored):
    """The body of any other result is its meta in JSON and nothing else."""
    app = counted()
    result = stored(app, {"a": [1, "é"]})
    assert json.loads(object_of(app, result).body)["result"] == {"a": [1, "é"]}


# -- the commands


@pytest.fixture
def command(counted):
    """``command(app, "show", id)``: what `celery s3` prints, as bytes."""

    def run(app, *arguments):
        obj = CLIContext(app=app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, [str(argument) for argument in arguments], obj=obj)
        assert (done.exit_code, done.exception) == (0, None), done.output
        return done.stdout_bytes

    return run


@pytest.mark.parametrize("conf", [{}, {"result_compression": "gzip"}], ids=["plain", "compressed"])
@pytest.mark.parametrize("value", [b"", ALL, ALL * 10_000], ids=len)
def test_output(counted, stored, command, tmp_path, value, conf):
    """`show --output` writes the bytes and nothing else; `show` tells that they are bytes, and how many."""
    app = counted(**conf)
    result = stored(app, value)
    command(app, "show", result.id, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == value
    assert f"The result is bytes, {len(value):,} of them: --output FILE".encode() in command(app, "show", result.id)


def test_output_behind_a_large_preamble(counted, stored, command, tmp_path):
    """The bytes are found where their preamble is larger than the first GET."""
    app = counted(result_extended=True)
    result = stored(app, ALL, args=["x" * 2 * HEAD_BYTES], kwargs={})
    command(app, "show", result.id, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == ALL


def test_output_of_garbage(counted, command, tmp_path):
    """A preamble that promises more than there is is no preamble: all bytes of the object are written."""
    app, id = counted(), uuid()
    body = raw.MAGIC + b"application/json\x00\x00\x00\xff\xff{}"
    key = app.backend._full(app.backend.get_key_for_task(id))
    app.backend.store.put(key, body, content_type=raw.CONTENT_TYPE)
    command(app, "show", id, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == body


def test_raw_and_json(counted, stored, command):
    """`--raw` gives the stored body, `--json` the bytes in base64; `wait` the bytes themselves."""
    app = counted()
    result = stored(app, ALL)
    assert command(app, "show", result.id, "--raw") == object_of(app, result).body
    for name in ("show", "wait"):
        told = json.loads(command(app, name, result.id, "--json"))["result"]
        assert told == {"type": "bytes", "base64": base64.b64encode(ALL).decode()}
    assert command(app, "wait", result.id) == ALL
