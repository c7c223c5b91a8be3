"""Objects of any size on a bucket in memory: what is sent, what is held, and what stays when something fails."""

from __future__ import annotations

import array
import itertools
import logging
import threading
import time
from base64 import b64encode
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_s3.errors import (
    AccessDenied,
    Conflict,
    Interrupted,
    ObjectMissing,
    PreconditionFailed,
    ServerFault,
    Throttled,
    UploadMissing,
)
from celery_s3.metadata import SEAL
from celery_s3.sealing.format import SEGMENT, plain_size, stored_size
from celery_s3.sealing.wrapper import sealing
from celery_s3.sealing.writer import SealingWriter
from celery_s3.settings import Secret, Settings
from celery_s3.store import uploads
from celery_s3.store.api import CREATE, Match
from celery_s3.store.deadline import remaining
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.pieces import cut
from celery_s3.store.requests import CompleteUpload, PutPart
from celery_s3.store.retrying import Retrying, RetryPolicy
from celery_s3.store.uploads import PART, PARTS, UPLOAD, MultipartWriter, part_bytes

MIB = 1024 * 1024
#: The bytes of a part in these tests.
LENGTH = 10


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(uploads, "part_bytes", lambda size: LENGTH)


@pytest.fixture
def memory():
    return MemoryStore()


@pytest.fixture
def pool():
    pool = Pool(16)
    yield pool
    pool.close()


@pytest.fixture
def writer(memory, pool):
    """A writer over retries that do not wait."""
    return MultipartWriter(Retrying(memory, policy=RetryPolicy(3), sleep=lambda seconds: None), pool)


def verbs(memory):
    return [verb for verb, _ in memory.requests]


def stays(memory):
    """Every object's body by its key, once no upload is left."""
    assert memory.uploads == {}
    return {entry.key: memory.get(entry.key).body for entry in memory.list("")}


# -- what is sent


def test_one_part_is_a_plain_put(memory, writer):
    """What fits into one part is one PUT, an empty body too; nothing is marked."""
    for number, chunks in enumerate([[], [b""], [b"x" * LENGTH], [b"x" * 9, b"y"], iter([b"abc"])]):
        body = b"".join(chunks := list(chunks))
        etag = writer.write(f"k{number}", chunks, precondition=CREATE, metadata={"a": "b"}, content_type="x/y")
        found = memory.get(f"k{number}")
        assert (found.body, found.etag, found.metadata, found.content_type) == (body, etag, {"a": "b"}, "x/y")
    assert set(verbs(memory)) == {"PUT", "GET"}


@pytest.mark.parametrize("size", [LENGTH + 1, 2 * LENGTH, 50 * LENGTH, 50 * LENGTH + 1])
@pytest.mark.parametrize("told", [True, False])
def test_more_is_an_upload(memory, writer, size, told):
    """One byte more takes a request to begin, one for each part, and one to complete: no other."""
    body = bytes(range(256)) * 2
    body = body[:size]
    etag = writer.write("k", [body], size=size if told else None, metadata={"a": "b"}, content_type="x/y")
    sent = verbs(memory)
    assert (sent[0], sent[-1]) == ("CREATE", "COMPLETE")
    assert sent[1:-1] == ["PART"] * -(-size // LENGTH)
    found = memory.get("k")
    assert (found.body, found.etag, found.content_type) == (body, etag, "x/y")
    assert {name: value for name, value in found.metadata.items() if name != UPLOAD} == {"a": "b"}


@given(st.lists(st.binary(max_size=35)), st.sampled_from([1, 16]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_chunks(chunks, concurrency, told):
    """However the body is cut, it arrives; all parts but the last have one length."""
    pool, lengths = Pool(concurrency), {}

    class Noting(MemoryStore):
        def send(self, request):
            if isinstance(request, PutPart):
                lengths[request.number] = len(request.body)
            return super().send(request)

    memory = Noting()

    views = [memoryview(chunk) if number % 2 else chunk for number, chunk in enumerate(chunks)]
    body = b"".join(chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "part_bytes", lambda size: LENGTH)
        MultipartWriter(memory, pool).write("k", iter(views), size=len(body) if told else None)
    pool.close()
    assert memory.get("k").body == body
    assert [lengths[number] for number in sorted(lengths)][:-1] == [LENGTH] * max(0, len(lengths) - 1)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_cut(chunks, length):
    """Pieces of one length, the last one shorter, none empty."""
    pieces = list(cut(chunks, length))
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) == length for piece in pieces[:-1])
    assert all(0 < len(piece) <= length for piece in pieces)


def test_no_copy_of_what_is_a_part_already(memory, writer, monkeypatch):
    """Chunks of just the right length are sent as they are."""
    chunks, sent = [bytes([number]) * LENGTH for number in range(4)], {}
    send = memory.send

    def noting(request):
        if isinstance(request, PutPart):
            sent[request.number] = request.body
        return send(request)

    monkeypatch.setattr(memory, "send", noting)
    writer.write("k", chunks)
    assert all(sent[number] is chunk for number, chunk in enumerate(chunks, 1))


def test_views_of_anything(memory, writer):
    """A memoryview counts by its bytes, whatever it is a view of."""
    numbers = array.array("d", range(7))
    writer.write("k", [memoryview(numbers), memoryview(bytearray(b"tail"))], size=7 * 8 + 4)
    assert memory.get("k").body == numbers.tobytes() + b"tail"


@given(st.integers(0, 6 * 2**40))
def test_length_of_parts(size):
    """No more than 10,000 parts, of whole MiB, 8 of them at least, and no more than needed."""
    part = part_bytes(size)
    assert -(-size // part) <= PARTS
    assert part % MIB == 0
    assert part == PART or -(-size // (part - MIB)) > PARTS


def test_length_of_parts_of_an_unknown_number():
    """Whoever does not know the size gets 156 GiB of room."""
    assert part_bytes(None) * PARTS > 150 * 2**30


def test_too_many_parts(memory, writer, monkeypatch):
    """More than S3 takes is an error that names the remedy, and nothing stays."""
    monkeypatch.setattr(uploads, "PARTS", 3)
    with pytest.raises(ValueError, match="tell the `size`"):
        writer.write("k", itertools.repeat(b"x" * LENGTH))
    assert stays(memory) == {}


def test_from_inside_the_pool(memory, writer, pool):
    """A thread of the pool writes by itself, one part after the other."""
    assert len(pool.map(lambda number: writer.write(f"k{number}", [b"x" * 100], size=100), range(20))) == 20
    assert set(stays(memory).values()) == {b"x" * 100}


# -- what is held


def test_few_parts_are_held(memory, pool):
    """However slow the server, no more than eight parts are cut and not sent, and one more is being cut."""
    seen, lock = [], threading.Lock()
    made = done = 0

    def chunks():
        nonlocal made
        for _ in range(60):
            with lock:
                made += 1
                seen.append(made - done)
            yield b"x" * LENGTH

    class Slow(MemoryStore):
        def put_part(self, *args):
            nonlocal done
            etag = super().put_part(*args)
            with lock:
                done += 1
            return etag

    MultipartWriter(Slow(), pool).write("k", chunks())
    assert max(seen) <= uploads.AT_ONCE + 2
    assert max(seen) > 2


# -- what fails


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Throttled])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_an_error_in_the_chunks(memory, writer, error, count):
    """Whatever ends the chunks ends the upload: it is aborted once, nothing follows that, and the error passes."""

    def chunks():
        for _ in range(count):
            yield b"x" * LENGTH
        raise error("no more")

    with pytest.raises(error, match="no more"):
        writer.write("k", chunks())
    assert stays(memory) == {}
    sent = [verb for verb in verbs(memory) if verb != "LIST"]
    assert sent == [] if count < 2 else (sent.count("ABORT") == 1 and sent[-1] == "ABORT")


@pytest.mark.parametrize("come", [0, 9, 10, 11, 25, 99, 101, 200])
def test_another_size_than_was_said(memory, writer, come):
    """Too few bytes or too many are an error that names the key, and nothing is stored."""
    size = 100 if come != 9 else 8
    with pytest.raises(ValueError, match=r"^k: .* bytes"):
        writer.write("k", [b"x"] * come, size=size)
    assert stays(memory) == {}


@pytest.mark.parametrize("error", [AccessDenied("no"), UploadMissing("gone"), ServerFault("for ever")])
def test_a_part_that_fails(memory, writer, error):
    """A part that cannot be written ends the upload; no part is sent after the abort."""
    memory.faults.append(Fault(error, "PART", after=2, times=-1))
    with pytest.raises(type(error)):
        writer.write("k", [b"x" * 500], size=500)
    assert stays(memory) == {}
    sent = [verb for verb in verbs(memory) if verb != "LIST"]
    assert sent[-1] == "ABORT"
    assert "COMPLETE" not in sent


def test_the_abort_waits_for_parts_under_way(pool):
    """A part that is on its way when another one fails has ended before the abort: it would stay otherwise."""
    on_its_way, go_on = threading.Event(), threading.Event()

    class Server(MemoryStore):
        def send(self, request):
            if not isinstance(request, PutPart):
                return super().send(request)
            if request.number == 1:
                on_its_way.set()
                go_on.wait(10)
                return super().send(request)
            on_its_way.wait(10)
            threading.Timer(0.05, go_on.set).start()
            raise AccessDenied("no")

    memory = Server()
    with pytest.raises(AccessDenied):
        MultipartWriter(memory, pool).write("k", [b"x" * 20])
    assert verbs(memory) == ["CREATE", "PART", "ABORT"]
    assert stays(memory) == {}


def test_nobody_retries_for_an_upload_that_has_failed(pool):
    """A part that waits for its next try gives up once another one has failed."""
    failed = threading.Event()

    class Server(MemoryStore):
        def send(self, request):
            if not isinstance(request, PutPart):
                return super().send(request)
            if request.number == 1:
                failed.wait(10)
                while remaining() is None:  # until it is told
                    time.sleep(0.001)
                raise Interrupted("worth another try")
            failed.set()
            raise AccessDenied("no")

    memory = Server()
    store = Retrying(memory, policy=RetryPolicy(50), sleep=lambda seconds: None, random=lambda: 1.0)
    with pytest.raises(AccessDenied):
        MultipartWriter(store, pool).write("k", [b"x" * 20])
    assert verbs(memory) == ["CREATE", "ABORT"]
    assert remaining() is None


def test_an_abort_that_fails(memory, writer, caplog):
    """It is logged with the key and what will become of the parts; what is raised is what ended the upload."""
    memory.faults.append(Fault(AccessDenied("no parts"), "PART", times=-1))
    memory.faults.append(Fault(AccessDenied("no aborts"), "ABORT", times=-1))
    with caplog.at_level(logging.WARNING), pytest.raises(AccessDenied, match="no parts"):
        writer.write("k", [b"x" * 100])
    (record,) = caplog.records
    assert "celery s3 sweep" in record.getMessage()
    assert "no aborts" in record.getMessage()
    assert record.s3_key == "k"


def test_a_beginning_that_fails(memory, writer):
    """Where not even the upload begins, there is nothing to abort."""
    memory.faults.append(Fault(AccessDenied("no"), "CREATE"))
    with pytest.raises(AccessDenied):
        writer.write("k", [b"x" * 100])
    assert verbs(memory) == ["CREATE"]


@pytest.mark.parametrize("verb", ["CREATE", "PART", "COMPLETE"])
@pytest.mark.parametrize("error", [Throttled, ServerFault, Interrupted])
def test_each_request_is_tried_again(memory, writer, verb, error):
    """A passing fault costs one request more."""
    memory.faults.append(Fault(error("once"), verb))
    writer.write("k", [b"x" * 30], size=30, precondition=CREATE)
    assert verbs(memory).count(verb) == (4 if verb == "PART" else 2)
    assert stays(memory) == {"k": b"x" * 30}


# -- how an unclear completion is settled


@pytest.mark.parametrize("precondition", [None, CREATE, "match"])
def test_a_completion_whose_answer_is_lost(memory, writer, precondition):
    """It is known by its mark: the write has succeeded, with the etag that stands there."""
    if precondition == "match":
        precondition = Match(memory.put("k", b"before"))
    memory.faults.append(Fault(Interrupted("lost"), "COMPLETE", landed=True))
    etag = writer.write("k", [b"x" * 30], precondition=precondition)
    assert verbs(memory)[-3:] == ["COMPLETE", "COMPLETE", "GET"]
    assert memory.get("k").etag == etag
    assert stays(memory) == {"k": b"x" * 30}


def test_a_lost_answer_then_a_conflict(memory, writer):
    """A conflict with an earlier try of one's own is no failure."""
    memory.faults.append(Fault(Interrupted("lost"), "COMPLETE", landed=True))
    memory.faults.append(Fault(Conflict("in flight"), "COMPLETE"))
    writer.write("k", [b"x" * 30], precondition=CREATE)
    assert stays(memory) == {"k": b"x" * 30}


def test_equal_bytes_of_somebody_else(memory, writer):
    """Whoever lost against the very same bytes is told so: the mark tells them apart, not the body."""
    writer.write("k", [b"x" * 30], precondition=CREATE)
    with pytest.raises(PreconditionFailed):
        writer.write("k", [b"x" * 30], precondition=CREATE)
    assert stays(memory) == {"k": b"x" * 30}


def test_a_conflict(memory, writer):
    """S3 wants the parts anew after a conflict: it is raised after one completion, and nothing stays."""
    memory.faults.append(Fault(Conflict("in flight"), "COMPLETE"))
    with pytest.raises(Conflict):
        writer.write("k", [b"x" * 30], precondition=CREATE)
    assert verbs(memory).count("COMPLETE") == 1
    assert stays(memory) == {}


def test_an_upload_that_somebody_aborts(memory, writer):
    """It is told as what it is."""
    memory.faults.append(Fault(UploadMissing("gone"), "COMPLETE"))
    with pytest.raises(UploadMissing, match="lifecycle rule"):
        writer.write("k", [b"x" * 30])
    assert stays(memory) == {}


def test_two_at_once(memory, writer):
    """Of two uploads to one key one is the object; the other is refused, and leaves nothing."""
    outcomes, both = [], threading.Barrier(2)

    def write(body):
        def chunks():
            yield body * 20
            both.wait(10)
            yield body * 20

        try:
            outcomes.append(writer.write("k", chunks(), precondition=CREATE))
        except PreconditionFailed:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(body,)) for body in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1
    assert list(stays(memory).values()) in ([b"a" * 40], [b"b" * 40])


def test_a_refusal_that_cannot_be_looked_at(memory, writer):
    """Where the look fails too, that is raised: nobody knows what stands there."""
    memory.put("k", b"before")
    memory.faults.append(Fault(AccessDenied("no look"), "GET", times=-1))
    with pytest.raises(AccessDenied, match="no look"):
        writer.write("k", [b"x" * 30], precondition=CREATE)
    assert memory.uploads == {}


# -- sealed


@pytest.fixture
def sealed(memory, pool):
    """``sealed(seal="sign")``: a writer and a store with one key."""

    def make(**options):
        key = Secret(b64encode(b"k" * 32).decode())
        store = sealing(memory, Settings(bucket="memory", seal_keys=(key,), **options))
        return SealingWriter(MultipartWriter(memory, pool), store), store

    return make


BODIES = [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 3 * SEGMENT + 5]


@pytest.mark.parametrize("seal", ["encrypt", "sign"])
@pytest.mark.parametrize("size", BODIES)
@pytest.mark.parametrize("step", [SEGMENT - 7, SEGMENT, 100_000])
def test_sealed(memory, sealed, monkeypatch, seal, size, step):
    """What is sealed as it passes is read as what was sealed at once, whole or a range; it has the size foretold."""
    monkeypatch.setattr(uploads, "part_bytes", lambda size: 20_000)
    writer, store = sealed(seal=seal)
    body = (bytes(range(251)) * 300)[:size]
    chunks = [body[at : at + step] for at in range(0, size, step)]
    for told in (size, None):
        writer.write("k", chunks, size=told, metadata={"a": "b"})
        found = store.get("k")
        assert (found.body, found.size, found.metadata["a"]) == (body, size, "b")
        stored = memory.get("k", length=1)
        assert SEAL in stored.metadata
        assert stored.size == stored_size(size)
        assert plain_size(stored.size) == size
    if size > SEGMENT:
        assert store.get("k", start=SEGMENT - 3, length=7).body == body[SEGMENT - 3 : SEGMENT + 4]


def test_sealed_and_lost(memory, sealed):
    """A sealed completion whose answer is lost is known by its mark too, which the seal binds."""
    writer, store = sealed()
    memory.faults.append(Fault(PreconditionFailed("a second try is refused"), "COMPLETE", landed=True))
    writer.write("k", [b"x" * 500], precondition=CREATE)
    assert store.get("k").body == b"x" * 500
    assert store.get("k").metadata.keys() == {UPLOAD}


def test_every_seal_is_another(memory, sealed):
    """The same body is sealed with another key each time."""
    writer, _ = sealed()
    seen = set()
    for _ in range(3):
        writer.write("k", [b"x" * 500])
        seen.add(memory.get("k").body)
    assert len(seen) == 3


def test_a_sealed_size_that_is_wrong(memory, sealed):
    """The message has the sizes that the caller knows."""
    writer, _ = sealed()
    with pytest.raises(ValueError, match="30 bytes in place of 40"):
        writer.write("k", [b"x" * 30], size=40)
    assert stays(memory) == {}


def test_plain_by_choice(memory, sealed):
    """With `seal` 'off' what passes is stored as it is."""
    writer, store = sealed(seal="off")
    writer.write("k", [b"x" * 30])
    assert memory.get("k").body == store.get("k").body == b"x" * 30


def test_a_segment_that_is_missing(memory, sealed, monkeypatch):
    """A sealed object that somebody cut at a segment is no object."""
    writer, store = sealed()
    monkeypatch.setattr(uploads, "part_bytes", lambda size: 20_000)
    writer.write("k", [b"x" * (3 * SEGMENT)])
    found = memory.get("k")
    memory.put("k", found.body[: 2 * (SEGMENT + 16)], metadata=found.metadata, content_type=found.content_type)
    with pytest.raises(Exception, match="changed, exchanged or cut"):
        store.get("k")
    with pytest.raises(ObjectMissing):
        store.get("other")


class IgnoresConditions(MemoryStore):
    """As Ceph: a completion's condition is ignored, and its answer has no ETag."""

    def send(self, request):
        if isinstance(request, CompleteUpload):
            super().send(replace(request, precondition=None))
            return ""
        return super().send(request)


def test_a_completion_that_ignores_its_condition(pool):
    """What stands there by then stays, for one GET more; the etag that the answer lacks is read."""
    memory = IgnoresConditions()
    writer = MultipartWriter(memory, pool, look_before=True)
    etag = writer.write("k", [b"a" * 25], precondition=CREATE)
    assert verbs(memory) == ["CREATE", "PART", "PART", "PART", "GET", "COMPLETE", "GET"]
    assert etag == memory.get("k").etag
    for late in (CREATE, Match('"another"')):
        with pytest.raises(PreconditionFailed):
            writer.write("k", [b"b" * 25], precondition=late)
    assert memory.get("k").body == b"a" * 25
    assert memory.uploads == {}
    assert writer.write("k", [b"c" * 25], precondition=Match(etag)) == memory.get("k").etag


def test_no_look_where_there_is_no_condition(pool, memory):
    """What overwrites anything looks at nothing."""
    MultipartWriter(memory, pool, look_before=True).write("k", [b"a" * 25])
    assert "GET" not in verbs(memory)
