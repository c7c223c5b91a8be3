"""Garbage for every decoder: whatever stands in the bucket is a value or an error that is documented.

``python tests/soak/fuzz.py --inputs 100000`` (``make soak``) spreads the inputs over :data:`DECODERS`, prints a line
for each, and fails where one of them

* raises what its entry does not name, with the input, cut down to the smallest that does it;
* takes longer than ``SECONDS``, or more memory than ``MEMORY_OF_ONE``; or all of them more than ``MEMORY``;
* runs what no decoder should: a program, a pickle, code, a connection, an import.

Inputs are an entry's seeds with changes, JSON made of the words that our formats use, and plain bytes. ``--only`` takes
some of the entries, by a part of their names; ``--seed`` repeats a run.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from botocore.exceptions import ClientError
from celery import Celery
from celery.backends.base import Backend
from celery.result import result_from_tuple
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from kombu.compression import encoders
from kombu.exceptions import ContentDisallowed, DecodeError
from obstore import exceptions as obs

from celery_s3 import S3File, keys, typed
from celery_s3.chords import Chords, Decision, Manifest, Ticket
from celery_s3.chords.claim import Claim
from celery_s3.chords.parts import pack_part, pack_summary, unpack_part, unpack_summary
from celery_s3.claimcheck.envelope import unpack as unpack_message
from celery_s3.codec import raw
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC, compress_payload
from celery_s3.codec.decoding import Decoder as BodyDecoder
from celery_s3.errors import Garbled, NotDecodable, StoreError, UnreadableResult, Untrusted
from celery_s3.metadata import SEAL, children_in, state_of, task_of, term_of
from celery_s3.results.reader import Reader
from celery_s3.results.write_once import Results
from celery_s3.sealing.ciphers import Broken, SecretKey
from celery_s3.sealing.format import Header
from celery_s3.sealing.keyring import KeyRing, StaticKey
from celery_s3.sealing.wrapper import Sealing
from celery_s3.settings import Settings
from celery_s3.store.clients import boto3_errors
from celery_s3.store.clients.obstore_errors import Failure
from celery_s3.store.clients.translate import Operation
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.uploads import MultipartWriter

SECONDS = 5
MEMORY = 1 << 30
#: Bytes that one input may take, all of which are small: the bound of what decompresses, and that once more as a value.
MEMORY_OF_ONE = 1 << 28

JSON, TYPED = "application/json", "application/x-typed+json"
SETTINGS = Settings(bucket="bucket")
APP = Celery("fuzz", set_as_current=False)
#: What a line of JSON that is not what it should be makes of plain code; the callers have to know.
GARBLED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Decoder:
    """One way by which foreign bytes come in.

    Arguments:
        decode: what is fed.
        seeds: good inputs to start from.
        errors: all that it may raise.
    """

    name: str
    decode: Callable[[bytes], Any]
    seeds: tuple[bytes, ...] = ()
    errors: tuple[type[Exception], ...] = ()


# -- results


META = {
    "status": "SUCCESS",
    "result": [1, "é", None],
    "traceback": None,
    "children": [[["id", None], None]],
    "task_id": "t",
}
FAILURE = {"status": "FAILURE", "result": {"exc_type": "KeyError", "exc_message": ["x"], "exc_module": "builtins"}}
METAS = tuple(json.dumps(meta).encode() for meta in (META, FAILURE))


class Always:
    """A bucket with conditional writes."""

    def supported(self) -> bool:
        return True


def reader(content_type: str, metadata: dict[str, str] | None = None) -> Callable[[bytes], Any]:
    """Reads a result whose body is the input, as ``AsyncResult`` does."""
    store, body_decoder = MemoryStore(), BodyDecoder(content_type, {content_type})
    pool = Pool(1)
    results = Results(store, MultipartWriter(store, pool), Always(), pool, state_in=body_decoder.state_in)
    read = Reader(
        results,
        body_decoder,
        "bucket",
        lambda id: "key",
        Backend(app=APP).meta_from_decoded,
        lambda child: result_from_tuple(child, APP),
        lambda id: None,
        lambda id, found: None,
    )

    def decode(body: bytes) -> Any:
        store.put("key", body, metadata=metadata, content_type=content_type)
        results.write("key", METAS[0], "STARTED", {}, content_type)  # meets what stands there
        store.put("key", body, metadata=metadata, content_type=content_type)
        meta = read.meta("t")
        # as AsyncResult does, whatever it is asked
        return meta["status"], meta["result"], [result_from_tuple(child, APP) for child in meta.get("children") or ()]

    return decode


def metadata_of(text: bytes) -> Any:
    """What stands beside a body, in each of its places; headers are short."""
    value = text.decode("latin-1")[:2000]
    stored = {"celery-state": value, "celery-children": value, "celery-task": value, "celery-expires": value}
    children = children_in(stored).get("children") or ()
    results = [result_from_tuple(child, APP) for child in children]
    return results, state_of(stored), task_of(stored), term_of(stored)


# -- typed values


class Color(Enum):
    RED = 1


@typed.register(name="fuzz.order")
@dataclass(frozen=True)
class Order:
    id: UUID
    total: Decimal
    color: Color | None = None


typed.register(Color, name="fuzz.color")
VALUES = [
    {"a": (1, {2: b"\xff"}, {"$type": "x"}), "b": [2**70, float("nan"), {1, 2}]},
    [datetime(2024, 1, 1, tzinfo=UTC), Decimal("1.5"), Order(UUID(int=1), Decimal(2), Color.RED)],
]


def optional_values() -> Iterator[Any]:
    """Values of packages that need not be there."""
    try:
        import numpy as np
        import pandas as pd
        import pyarrow as pa
    except ImportError:
        return
    yield [np.arange(3), np.float64(1), np.array([(1, "a")], dtype="i4,U1")]
    yield pa.table({"x": [1, None], "y": [["a"], []]})
    yield pd.DataFrame({"a": [1], "b": ["x"]})


# -- files

FILE = {
    "key": "task/" + "0" * 32,
    "at": "s3://memory/celery-files/",
    "size": 3,
    "sha256": "a" * 64,
    "name": "x.txt",
    "content_type": "text/plain",
}


def file(body: bytes) -> Any:
    """What stands in the place of a file in a message: a handle, whatever it is, or no JSON."""
    found = S3File.of(json.loads(body))
    return repr(found), found.pointer()


# -- chords

MANIFEST = Manifest(("a", "b"), [0, [1]], b'{"task": "body"}', "root")
CLAIM = json.dumps({"owner": "o", "state": "sent", "lease": 30, "nonce": "n"}).encode()


def claim(body: bytes) -> Any:
    store = MemoryStore()
    store.put("claim", body)
    return Claim(store, "claim", 30).read()


def ticket(text: bytes) -> Any:
    """The options of a message, which come from the broker."""
    found = Ticket.loads(json.loads(text))
    return found.was_added("a"), found.added_by("a")


def chords(name: str) -> Callable[[bytes], Any]:
    """A chord of 33 members, one of whose objects is the input; its last two deliver."""

    def decode(body: bytes) -> Any:
        store = MemoryStore()
        room = Chords(store, Pool(1), "celery-chords/", lease=30)
        members = tuple(f"t{number}" for number in range(33))
        made = room.open("g", Manifest(members, None, b"{}"))
        for number in range(31):
            store.put(f"celery-chords/g/0/{number}", pack_part((), b"v"))
        store.put(f"celery-chords/g/{name}", body)
        for number in (32, 31):
            delivery = room.deliver(made, members[number], number, b"v")
            delivery.climb_quietly()
            complete = delivery.climb()
        if complete:
            Decision(room, made, *complete, lambda *_: lambda: "sent").go()

    return decode


# -- what S3 answers


SENTENCE = "Generic S3 error: Error performing PUT http://host/bucket/key in 1.2ms"
RUST = (
    f'{SENTENCE} - Server returned non-2xx status code: 503\n\nDebug source:\nGeneric {{\n    store: "S3",\n'
    "    source: RetryError(\n        RetryErrorImpl {\n            method: PUT,\n            uri: Some(\n"
    "                http://host/bucket/key,\n            ),\n            retries: 0,\n            elapsed: 1.5ms,\n"
    "            inner: Status {\n                status: 503,\n                body: Some(\n"
    '                    "<Error><Code>SlowDown</Code><Message>Wait &amp; see</Message></Error>",\n'
    "                ),\n            },\n        },\n    ),\n}"
).encode()


def obstore_error(text: bytes) -> Any:
    failure = Failure.of(obs.GenericError(text.decode("utf-8", "replace")))
    error = failure.error(Operation("put", "key"), SETTINGS, worked=True)
    assert isinstance(error, StoreError)
    return str(error)


def boto3_error(text: bytes) -> Any:
    word = text.decode("latin-1")
    code, _, message = word.partition("|")
    response = {
        "Error": {"Code": code, "Message": message, "Region": message[:9]},
        "ResponseMetadata": {"HTTPStatusCode": len(text) % 600, "HTTPHeaders": {"content-type": word}},
    }
    errors = [
        boto3_errors.translated(ClientError(response, "PutObject"), Operation("put", "key"), SETTINGS),
        boto3_errors.from_error({"Code": code, "Message": message}, Operation("delete", "key"), SETTINGS),
    ]
    assert all(isinstance(error, StoreError) for error in errors)
    return [str(error) for error in errors]


# -- sealed objects


def sealed(accept: bool) -> tuple[Callable[[bytes], Any], bytes]:
    """Reads an object whose header and body, apart by a newline, are the input; and a good one."""
    inner = MemoryStore()
    store = Sealing(inner, KeyRing([StaticKey(SecretKey(bytes(32)))]), "bucket", accept_unsealed=accept)
    store.put("key", b"secret", content_type=JSON)
    good = inner.get("key")

    def decode(text: bytes) -> Any:
        header, _, body = text.partition(b"\n")
        inner.put("key", body, metadata={SEAL: header.decode("latin-1")}, content_type=JSON)
        return store.get("key").body

    return decode, good.metadata[SEAL].encode() + b"\n" + good.body


OPEN, SEALED = sealed(accept=True)

# -- messages

EMBED = {"callbacks": None, "errbacks": None, "chain": [{"task": "t", "args": [], "kwargs": {}}], "chord": None}
POINTER = {"object": "0" * 64, "size": 5, "at": "s3://bucket/celery-messages/", "args": True, "kwargs": True}
MESSAGES = tuple(
    json.dumps(message).encode()
    for message in (
        [[1], {}, EMBED],
        [[], {}, {**EMBED, "celery_s3": POINTER}],
        {"task": "t", "id": "i", "args": [], "kwargs": {}, "callbacks": [], "errbacks": [], "celery_s3": POINTER},
    )
)


def compressed(body: bytes) -> Any:
    return BodyDecoder(JSON, {JSON}).loads(COMPRESSED_PAYLOAD_MAGIC + body, JSON)


PACKED = tuple(
    b"".join(compress_payload(METAS[0] + b" " * 1000, method, 0)).removeprefix(COMPRESSED_PAYLOAD_MAGIC)
    for method in encoders()
)


def with_preamble(body: bytes) -> Any:
    return BodyDecoder(JSON, {JSON}).loads(raw.MAGIC + body, raw.CONTENT_TYPE)


READ = reader(JSON)
WITH_PREAMBLE = tuple(
    (raw.preamble(json.dumps({**META, "result": len(value)}), JSON) + value).removeprefix(raw.MAGIC)
    for value in (b"", b"\x00\xff", b"x" * 500)
)

#: A line for each way in. Add yours.
DECODERS = (
    Decoder("codec.loads", lambda body: BodyDecoder(JSON, {JSON}).loads(body, JSON), METAS, (DecodeError,)),
    Decoder("codec.loads, compressed", compressed, PACKED, (DecodeError,)),
    Decoder("codec.loads, raw bytes", with_preamble, WITH_PREAMBLE, (DecodeError, ContentDisallowed)),
    Decoder("result", reader(JSON), METAS, (UnreadableResult,)),
    Decoder("result, raw bytes", lambda body: READ(raw.MAGIC + body), WITH_PREAMBLE, (UnreadableResult,)),
    Decoder("result, typed", reader(TYPED), (*METAS, typed.dumps(META).encode()), (UnreadableResult,)),
    Decoder("result, large", reader(JSON, {"celery-state": "SUCCESS"}), METAS, (UnreadableResult,)),
    Decoder("metadata", metadata_of, (b"SUCCESS", b'[[["id",null],null]]', b"%C3%A9", b"60.5")),
    Decoder("keys.decode_id", lambda text: keys.decode_id(text.decode("utf-8", "replace")), (b"a%2Fb%C3%A9", b"plain")),
    Decoder("typed.loads", typed.loads, tuple(typed.dumps(value).encode() for value in VALUES), (NotDecodable,)),
    Decoder(
        "typed.loads, optional types",
        typed.loads,
        tuple(typed.dumps(value).encode() for value in optional_values()),
        (NotDecodable,),
    ),
    Decoder("file", file, (json.dumps(FILE).encode(),), (ValueError, RecursionError)),
    Decoder("manifest", Manifest.loads, (MANIFEST.dumps(),), (ValueError,)),
    Decoder("part", unpack_part, (pack_part(("a",), b"value"),), (ValueError,)),
    Decoder("summary", unpack_summary, (pack_summary([b"one", None, b""]),), (ValueError,)),
    Decoder("claim", claim, (CLAIM,), (Garbled,)),
    Decoder("ticket", ticket, (json.dumps(Ticket("g", 2, True, "n", 1, ("a",), ("b",)).dumps()).encode(),), GARBLED),
    Decoder("chord with a bad manifest", chords("manifest"), (MANIFEST.dumps(),), (Garbled,)),
    Decoder("chord with a bad claim", chords("0/claim"), (CLAIM,), (Garbled,)),
    Decoder("chord with a bad part", chords("0/5"), (pack_part((), b"v"), pack_part(("t1",), b"v")), (Garbled,)),
    Decoder("chord with a bad summary", chords("0/1/0"), (pack_summary([b"[]\nv"] * 32),), (Garbled,)),
    Decoder("obstore's errors", obstore_error, (RUST,)),
    Decoder("boto3's errors", boto3_error, (b"SlowDown|Wait", b"403|")),
    Decoder(
        "seal's header", lambda text: Header.loads(text.decode("latin-1")), (SEALED.partition(b"\n")[0],), (Broken,)
    ),
    Decoder("sealed object", OPEN, (SEALED,), (Untrusted,)),
    Decoder("claim check", lambda body: unpack_message(body, "json"), MESSAGES, (DecodeError,)),
)


# -- inputs

_WORDS = sorted(
    {
        word
        for decoder in DECODERS
        for seed in decoder.seeds
        for word in re.findall(r"[A-Za-z$_.+]{2,20}", seed.decode("latin-1"))
    }
    | {
        "$type",
        "value",
        "py.tuple",
        "py.dict",
        "py.set",
        "py.float",
        "py.int",
        "py.zoneinfo",
        "py.timezone",
        "py.timedelta",
    }
    | {
        "py.datetime",
        "numpy.array",
        "numpy.scalar",
        "pyarrow.table",
        "pandas.frame",
        "__type__",
        "__value__",
        "os",
        "system",
    }
)[:400]
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(_WORDS)
    | st.text(max_size=12)
    | st.sampled_from([10**400, "9" * 5000, "NaN", "../../etc/passwd", "2024-01-01T00:00:00+25:00"])
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=5), inner, max_size=5)
        | st.fixed_dictionaries({"$type": st.sampled_from(_WORDS), "value": inner})
    ),
    max_leaves=12,
)
_TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\n",
    b"\0",
    b"null",
    b"-1",
    b"1e999",
    b"\xff",
    b"[" * 3000,
    b"%",
    b"\\u0000",
]
_EDIT = st.tuples(st.integers(0, 10**6), st.integers(0, 9), st.sampled_from(_TOKENS) | st.binary(max_size=4))


def changed(body: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """A body with bytes taken out and put in."""
    for place, cut, put in edits:
        at = place % (len(body) + 1)
        body = body[:at] + put + body[at + cut :]
    return body


def inputs(decoder: Decoder) -> st.SearchStrategy[bytes]:
    """What a decoder is fed."""
    made = _JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")) | st.binary(max_size=200)
    if not decoder.seeds:
        return made
    return made | st.builds(changed, st.sampled_from(decoder.seeds), st.lists(_EDIT, max_size=4))


# -- watching

#: The audit events of what no decoder does.
FORBIDDEN = frozenset(
    {
        "exec",
        "pickle.find_class",
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "subprocess.Popen",
        "socket.connect",
    }
    | {"ctypes.dlopen", "os.remove", "os.rename", "shutil.rmtree", "import"}
)
#: What decoding imports by itself, once.
_HARMLESS = re.compile(
    r"encodings|tzdata|zoneinfo|importlib|numpy|pyarrow|pandas|hypothesis|dateutil|pytz|ast$|unicodedata|html"
)

_watching = False


class Forbidden(BaseException):
    """Something ran that no decoder should run."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watching or event not in FORBIDDEN:
        return
    if event == "import" and _HARMLESS.match(args[0] or "importlib"):
        return
    if event == "exec" and _HARMLESS.search(str(getattr(args[0], "co_filename", ""))):
        return
    raise Forbidden(f"{event}: {args!r:.200}")


sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[None]:
    """Nothing forbidden happens meanwhile."""
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False


def feed(decoder: Decoder, body: bytes) -> str:
    """Decode; what came of it: ``value``, or the name of an error that is documented."""
    started, high = time.process_time(), peak()
    try:
        with watched():
            decoder.decode(body)
        outcome = "value"
    except decoder.errors as exc:
        outcome = type(exc).__name__
    seconds = time.process_time() - started
    assert seconds < SECONDS, f"{decoder.name} took {seconds:.1f} s"
    assert peak() - high < MEMORY_OF_ONE, f"{decoder.name} took {(peak() - high) >> 20} MiB for {len(body):,} bytes"
    return outcome


def peak() -> int:
    """The most memory, in bytes, that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(decoder: Decoder, count: int, seed: int) -> Counter[str]:
    """Feed a decoder so many inputs; how often which outcome came.

    Raises:
        Exception: what a decoder should not have raised, after the smallest input that makes it do so was printed.
    """
    outcomes: Counter[str] = Counter()

    @with_seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(decoder))
    def each(body: bytes) -> None:
        outcomes[feed(decoder, body)] += 1

    for body in decoder.seeds:
        feed(decoder, body)
    each()
    return outcomes


# -- the command


def limited(decoder: Decoder) -> Decoder:
    """The decoder, stopped where it does not come to an end."""

    def decode(body: bytes) -> Any:
        signal.alarm(10 * SECONDS)
        try:
            return decoder.decode(body)
        finally:
            signal.alarm(0)

    return replace(decoder, decode=decode)


def _stuck(*_: Any) -> None:
    raise Forbidden(f"still busy after {10 * SECONDS} s")


def _limit_memory() -> None:
    """Let an allocation fail that would take the machine down."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all (default: 100,000)")
    parser.add_argument("--only", default="", help="part of a decoder's name")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _stuck)
    _limit_memory()
    chosen = [decoder for decoder in DECODERS if options.only in decoder.name]
    if not chosen:
        parser.error(f"no decoder is named like {options.only!r}")
    seed = int(time.time()) if options.seed is None else options.seed
    share = -(-options.inputs // len(chosen))
    print(f"{len(chosen)} decoders, {share:,} inputs each, seed {seed}", flush=True)
    failed, total = [], 0
    for decoder in chosen:
        started = time.monotonic()
        try:
            outcomes = run(limited(decoder), share, seed)
        except (Exception, ExceptionGroup, Forbidden) as exc:
            failed.append(decoder.name)
            notes = (f"  {note:.1000}" for note in getattr(exc, "__notes__", ()))
            print(f"FAILED {decoder.name}: {type(exc).__name__}: {exc}", *notes, sep="\n", flush=True)
            continue
        count = sum(outcomes.values())
        total += count
        told = ", ".join(f"{outcomes[name]:,} {name}" for name in sorted(outcomes, key=outcomes.get, reverse=True))
        print(f"{decoder.name:30} {count:8,} in {time.monotonic() - started:5.0f} s: {told}", flush=True)
    print(f"{total:,} inputs, {len(failed)} decoders failed{': ' if failed else ''}{', '.join(failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
