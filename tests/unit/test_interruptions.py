"""What stands behind an error: a soft time limit comes out as itself, and no message repeats a value."""

from __future__ import annotations

import json
import pickle
import signal
from dataclasses import dataclass, replace
from functools import partial

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import DecodeError, EncodeError
from kombu.serialization import dumps, loads, registry

from celery_s3 import typed
from celery_s3.codec.chunks import LARGE
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC, decompress_payload
from celery_s3.codec.decoding import Decoder, Whole
from celery_s3.codec.encoding import Encoder
from celery_s3.errors import Interrupted, UnreadableResult
from celery_s3.interruptions import LONGEST, brief, reraise_interruption
from celery_s3.results.reader import Reader
from celery_s3.settings import Settings
from celery_s3.store.api import Object
from celery_s3.store.clients.translate import Operation, answered, error_of
from celery_s3.store.memory import MemoryStore

JSON, OWN = "application/json", "application/x-own"


@pytest.fixture
def meet(monkeypatch):
    """``meet(kind)``: what happens while a body of the type :data:`OWN` is decoded."""

    def happen(kind):
        def decode(body):
            raise kind

        monkeypatch.setitem(registry._decoders, OWN, decode)

    return happen


@pytest.fixture
def intruder(meet):
    meet(SoftTimeLimitExceeded)
    return SoftTimeLimitExceeded


def test_wrapped(intruder):
    """A decoder makes its own error of whatever it meets; inside of it stands what it was."""
    with pytest.raises(DecodeError):
        loads(b"body", OWN, "utf-8", {OWN})
    with pytest.raises(intruder):
        try:
            loads(b"body", OWN, "utf-8", {OWN})
        except DecodeError as exc:
            reraise_interruption(exc, None)


def test_what_was_handled_before(intruder):
    """An error of its own, met while the caller handles a soft time limit, is that error."""
    try:
        raise intruder
    except intruder:
        with pytest.raises(DecodeError):
            Decoder(JSON, {JSON}).loads(b"{", JSON)


def whole():
    store = MemoryStore()
    store.put("key", b"body", content_type=OWN)
    found = store.get("key")
    assert isinstance(found, Object)
    return Whole(found, found.body)


def test_results(intruder):
    """Whoever reads a result, or the state of what stands where he writes, is told of it and not of a bad object."""
    decoder = Decoder(OWN, {OWN})
    reader = Reader(None, decoder, "b", None, lambda meta: meta, None, None, lambda id, found: None)
    for read in (
        lambda: decoder.loads(b"body", OWN),
        lambda: decoder.decode(whole()),
        lambda: decoder.state_in(whole()),
        lambda: reader._decoded("id", whole(), lambda meta: meta),
    ):
        with pytest.raises(intruder):
            read()


def test_no_memory(meet):
    """The end of the memory says nothing of a large result; what is small and needs so much is garbage."""
    meet(MemoryError)
    decoder = Decoder(OWN, {OWN})
    reader = Reader(None, decoder, "b", None, lambda meta: meta, None, None, lambda id, found: None)
    assert decoder.state_in(whole()) is None
    with pytest.raises(UnreadableResult):
        reader._decoded("id", whole(), lambda meta: meta)
    large = whole()
    large.about = replace(large.about, size=LARGE + 1)
    with pytest.raises(MemoryError):
        reader._decoded("id", large, lambda meta: meta)


def test_decompression(monkeypatch, intruder):
    """It comes out of a decompressor, too."""

    def decode(body):
        raise intruder

    monkeypatch.setattr("celery_s3.codec.compression.get_decoder", lambda name: decode)
    with pytest.raises(intruder):
        decompress_payload(COMPRESSED_PAYLOAD_MAGIC + b"own\0body")


class Handler:
    """What an application may set for a signal."""

    def __call__(self, number, frame):
        raise TimeoutError("the application's own")

    def method(self, *_):
        def deeper():
            raise TimeoutError("the application's own")

        deeper()


HANDLERS = {
    "function": lambda number, frame: Handler().method(number),
    "method": Handler().method,
    "callable": Handler(),
    "partial": partial(Handler.method, Handler()),
}


@pytest.fixture(params=HANDLERS)
def alarm(request):
    """Sends this process a signal whose handler raises a TimeoutError, as the standard library's own do."""
    before = signal.signal(signal.SIGALRM, HANDLERS[request.param])
    yield lambda *_: signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)


def failing(fn, kind=ValueError):
    """``fn`` as a library calls it, which makes an error of its own of whatever it meets."""

    def call(*args):
        try:
            return fn(*args)
        except Exception as exc:
            raise kind("as the library has it") from exc

    return call


def client_call(fn):
    asked = Operation("get", "key")
    return answered(
        fn, lambda exc: isinstance(exc, OSError), lambda exc: error_of(Interrupted, asked, Settings(bucket="b"))
    )


def test_what_a_handler_raises(alarm, monkeypatch):
    """It comes out as itself of encoders, decoders, decompressors and clients, wrapped by a library or not."""
    monkeypatch.setitem(registry._decoders, OWN, alarm)
    monkeypatch.setattr("celery_s3.codec.compression.get_decoder", lambda name: failing(alarm))
    reader = Reader(None, Decoder(OWN, {OWN}), "b", None, lambda meta: meta, None, None, lambda id, found: None)
    encoder = Encoder(failing(alarm, EncodeError), JSON, None, 0)
    meta = {"status": "SUCCESS", "result": 1}
    for work in (
        lambda: encoder.payload(meta),
        lambda: encoder.body(meta),
        lambda: encoder.body({**meta, "result": b"bytes"}),
        lambda: reader.decoder.loads(b"body", OWN),
        lambda: reader.decoder.state_in(whole()),
        lambda: reader._decoded("id", whole(), lambda meta: meta),
        lambda: decompress_payload(COMPRESSED_PAYLOAD_MAGIC + b"own\0body"),
        lambda: client_call(alarm),
        lambda: client_call(failing(alarm, ConnectionError)),
    ):
        with pytest.raises(TimeoutError, match="the application's own"):
            work()


def test_what_a_handler_raised_before(alarm):
    """A time-out of the network, met while the application deals with its alarm, is one of the network."""

    def time_out():
        raise TimeoutError("timed out")

    with pytest.raises(Interrupted):
        client_call(time_out)
    try:
        alarm()
    except TimeoutError:
        with pytest.raises(Interrupted):
            client_call(failing(time_out, ConnectionError))


@dataclass
class Own:
    """A type whose owner tells how it is taken apart."""


def test_encoding_a_type_of_the_users():
    """A soft time limit in a type's own `encode` is no fault of the value."""

    def encode(value):
        raise SoftTimeLimitExceeded

    typed.register(Own, name="test_interruptions.own", encode=encode, decode=Own)
    encoder = Encoder(lambda data: dumps(data, serializer="typed+json")[2], "application/json", None, 0)
    with pytest.raises(SoftTimeLimitExceeded):
        encoder.payload({"result": [Own()]})


def test_brief():
    """An error is told by its type and the beginning of its text, never by what it has in hand."""
    broken = UnicodeDecodeError("utf-8", b"secret" * 1000 + b"\xff", 6000, 6001, "invalid start byte")
    assert "secret" not in brief(broken)
    assert brief(broken).startswith("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 6000")
    assert len(brief(ValueError("x" * 10_000))) < LONGEST + 20


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "large"])
def test_messages_repeat_no_value(size):
    """Neither the error of a result that cannot be read nor any of its causes repeats the value."""
    decoder = Decoder(JSON, None)
    reader = Reader(None, decoder, "b", None, lambda meta: meta, None, None, lambda id, found: None)
    value = {"status": "SUCCESS", "result": "secret " * size}
    for body, content_type in (
        (json.dumps(value).encode().replace(b"t ", b"t\xff", 1), JSON),
        (pickle.dumps(value).replace(b"t ", b"t\xff", 1), "application/x-python-serialize"),
    ):
        store = MemoryStore()
        store.put("key", body, content_type=content_type)
        found = store.get("key")
        with pytest.raises(UnreadableResult) as caught:
            reader._decoded("id", Whole(found, body), lambda meta: meta)
        error = caught.value
        while error is not None:
            assert "secret" not in str(error)
            error = error.__cause__
