"""Results that only who has the keys can read or make, on real servers, with as many requests as without."""

from __future__ import annotations

import base64
import json
import logging
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import botocore.session
import pytest
from celery import states
from celery.exceptions import ChordError, TimeoutError
from kombu.utils.uuid import uuid

from celery_s3.bucket import open_store
from celery_s3.errors import (
    KeyRefused,
    KeyUnavailable,
    NotSealed,
    ResultNotRead,
    ResultNotStored,
    Tampered,
    UnknownKey,
    UnreadableResult,
    Untrusted,
)
from celery_s3.metadata import SEAL
from celery_s3.processes import Remembered
from celery_s3.results.write_once import HEAD_BYTES, PART_BYTES
from celery_s3.sealing.format import SEGMENT
from celery_s3.settings import Secret
from celery_s3.store.api import CREATE

KEY = base64.b64encode(b"1" * 32).decode()
OTHER = base64.b64encode(b"2" * 32).decode()
SEALED = {"seal_keys": [KEY]}
SIZES = [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, HEAD_BYTES, HEAD_BYTES + 1, 300_000]


@pytest.fixture
def sealed(counted):
    """``sealed(seal="sign")``: an app with keys, behind the proxy."""
    return lambda **settings: counted(s3_backend_settings={**SEALED, **settings})


@pytest.fixture
def plain(counted):
    """An app without keys on the same keys: what somebody else sees, and does, in the bucket."""
    return counted()


def key_of(app, id):
    return app.backend._full(app.backend.get_key_for_task(id))


def change(app, key, **changes):
    """Write over an object as somebody without keys can."""
    found = replace(app.backend.store.get(key), **changes)
    app.backend.store.put(key, found.body, metadata=found.metadata, content_type=found.content_type)


def flipped(body, place=0):
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


# -- every server, both clients


@pytest.mark.parametrize("client", ["obstore", "boto3"])
@pytest.mark.parametrize("seal", ["encrypt", "sign"])
def test_round_trip(seaweed, settings_for, prefix, client, seal):
    """What servers do to headers and ranges breaks no seal: bodies, ranges, metadata and content types come back."""
    settings = settings_for(seaweed, client=client, seal=seal, seal_keys=(Secret(KEY),))
    opened = open_store(settings)
    metadata = {"celery-state": "SUCCESS", "celery-task": "proj.tasks.a b;c", "celery-children": '[[["id", null], []]]'}
    names = [f"{prefix}k", f"{prefix}a b/%41+é?&='\"~", f"{prefix}日本語"]
    for key, size in [*((names[0], size) for size in SIZES), *((name, 10) for name in names)]:
        body = os.urandom(size)
        etag = opened.store.put(key, body, metadata=metadata, content_type="application/json")
        found = opened.store.get(key, length=HEAD_BYTES)
        assert (found.body, found.size, found.etag) == (body[:HEAD_BYTES], size, etag)
        assert (dict(found.metadata), found.content_type) == (metadata, "application/json")
        if size > HEAD_BYTES:
            rest = opened.store.get(key, start=HEAD_BYTES, length=PART_BYTES, if_match=etag)
            assert rest.body == body[HEAD_BYTES:]
    opened.store.put(names[0], b"untyped")
    assert opened.store.get(names[0]).body == b"untyped"
    assert sum(entry.size for entry in opened.store.list(names[0])) == len(b"untyped") + 16
    opened.close()


# -- the same requests


@pytest.mark.parametrize("seal", ["encrypt", "sign"])
def test_a_result_is_one_request_each_way(sealed, stored, spends, seal):
    """Sealing adds no request: one to store, one to fetch, two for a large one, one more for a duplicate."""
    app = sealed(seal=seal)
    with spends(PUT=1):
        result = stored(app, {"answer": 42})
    with spends(GET=1):
        assert result.get(timeout=5) == {"answer": 42}
    with spends(PUT=1, GET=1):
        stored(app, "another", id=result.id)
    with spends(PUT=1):
        large = stored(app, "x" * 300_000)
    with spends(GET=1):
        assert large.state == "SUCCESS"
    with spends(GET=1):
        assert len(large.get(timeout=5)) == 300_000
    with spends(PUT=2):
        id = uuid()
        stored(app, None, states.STARTED, id)
        stored(app, 1, id=id)
    assert app.AsyncResult(id).get(timeout=5) == 1


def test_large_results_come_in_parts(sealed, stored, proxy):
    """The parts are those of before, each a little longer."""
    app = sealed()
    result = stored(app, "x" * 20_000_000)
    proxy.reset()
    assert len(result.get(timeout=30)) == 20_000_000
    assert proxy.counts() == Counter(GET=6)


def test_a_lost_answer(sealed, stored, proxy):
    """A write that landed without an answer is known by its bytes, which a retry does not make anew."""
    app, id = sealed(), uuid()
    proxy.fail("PUT", "internal_error_after")
    result = stored(app, "landed", id=id)
    assert proxy.counts() == Counter(PUT=2, GET=1)
    assert result.get(timeout=5) == "landed"


def test_the_bucket_holds_no_value(sealed, plain, stored):
    """Body and saved groups are unreadable without the key; state and task's name are not hidden."""
    app = sealed()
    result = stored(app, "a secret value", _children=[app.AsyncResult("child")])
    group = app.GroupResult("the-group", [result])
    group.save(backend=app.backend)
    group_key = app.backend._full(app.backend.get_key_for_group(group.id))
    bodies = [plain.backend.store.get(key).body for key in (key_of(app, result.id), group_key)]
    assert not any(word in body for word in (b"secret", b"SUCCESS", result.id.encode()) for body in bodies)
    metadata = plain.backend.store.get(key_of(app, result.id)).metadata
    assert (metadata["celery-state"], metadata["celery-task"]) == ("SUCCESS", "proj.tasks.job")
    assert app.GroupResult.restore(group.id, backend=app.backend, app=app).get(timeout=5) == ["a secret value"]


def test_a_process_without_keys(sealed, plain, stored):
    """It is told what it lacks, and does not write over what it cannot read."""
    result = stored(sealed(), "one")
    why = r"^The object s3://\S+, the result of \S+, is sealed: give this process the `seal_keys` of .*\.$"
    with pytest.raises(UnreadableResult, match=why):
        plain.AsyncResult(result.id).get(timeout=5)
    stored(plain, "plain", state=states.FAILURE, id=result.id)
    assert result.get(timeout=5) == "one"


def test_white_space_in_a_state(sealed, stored):
    """HTTP trims what a header begins and ends with; the seal binds the state, which is read as it was stored."""
    app = sealed()
    for state in (" PROGRESS ", "two  spaces", "tab\t"):
        result = stored(app, {"done": 1}, state=state)
        assert app.AsyncResult(result.id).state == state


# -- results that are not what was written


BROKEN = {
    "changed": (lambda found: {"body": flipped(found.body)}, Tampered),
    "cut": (lambda found: {"body": found.body[:-1]}, Tampered),
    "empty": (lambda found: {"body": b""}, Tampered),
    "another state": (lambda found: {"metadata": {**found.metadata, "celery-state": "FAILURE"}}, Tampered),
    "another type": (lambda found: {"content_type": "application/x-python-serialize"}, Tampered),
    "plain": (
        lambda found: {
            "body": json.dumps({"status": "SUCCESS", "result": "forged"}).encode(),
            "metadata": {"celery-state": "SUCCESS"},
        },
        NotSealed,
    ),
    "of another key": (
        lambda found: {"metadata": {**found.metadata, SEAL: found.metadata[SEAL].replace(".", ".A256GCM.f", 1)}},
        Untrusted,
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("size", [10, 300_000])
def test_it_is_never_a_value(sealed, plain, stored, how, size):
    """Whoever asks gets an error with the task's id, the reason and the remedy, in a group too; forget clears it."""
    app = sealed()
    result = stored(app, "x" * size)
    key, (changes, error) = key_of(app, result.id), BROKEN[how]
    change(plain, key, **changes(plain.backend.store.get(key)))
    uses = [lambda: result.get(timeout=5), lambda: app.GroupResult("g", [result]).get(timeout=5)]
    if size == 10 or how != "cut":
        # of a large object, the state is told by its first segments: whether the last one is whole shows at the end
        uses += [lambda: result.state, result.ready, lambda: app.backend.task_result_exists(result.id)]
    for use in uses:
        with pytest.raises(ResultNotRead, match=result.id) as caught:
            use()
        assert isinstance(caught.value.__cause__, error)
        assert error.remedy in str(caught.value)
    result.forget()
    assert result.state == "PENDING"


def test_changed_behind_the_first_bytes(sealed, plain, stored):
    """The rest of a large result is checked too, when it is read."""
    app = sealed()
    result = stored(app, "x" * 300_000)
    key = key_of(app, result.id)
    change(plain, key, body=flipped(plain.backend.store.get(key).body, 200_000))
    assert result.state == "SUCCESS"
    with pytest.raises(ResultNotRead, match=result.id):
        result.get(timeout=5)


@pytest.mark.parametrize("seal", ["encrypt", "sign"])
@pytest.mark.parametrize("size", [10, 300_000])
def test_who_stands_between(sealed, stored, proxy, seal, size):
    """Whoever alters an answer on its way, as one may without TLS, makes it an error and never a value."""
    app = sealed(seal=seal)
    result = stored(app, "x" * size)
    proxy.fail("GET", "alter", times=-1)
    with pytest.raises(ResultNotRead, match=result.id) as caught:
        result.get(timeout=5)
    assert isinstance(caught.value.__cause__, Tampered)
    proxy.heal()
    assert result.get(timeout=5) == "x" * size


def test_another_tasks_result(sealed, plain, stored):
    """A result copied to another task's key, header and all, is not that task's result."""
    app = sealed()
    result, victim = stored(app, "for me"), uuid()
    found = plain.backend.store.get(key_of(app, result.id))
    key = key_of(app, victim)
    plain.backend.store.put(key, found.body, metadata=found.metadata, content_type=found.content_type)
    with pytest.raises(ResultNotRead, match=victim):
        app.AsyncResult(victim).get(timeout=5)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "RETRY"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_write_does_not_replace_it(sealed, plain, stored, caplog, how, state):
    """It may be a SUCCESS: it stays as it is, and the writer is told, by its log where the state is no final one."""
    app = sealed()
    result = stored(app, "mine")
    key, (changes, error) = key_of(app, result.id), BROKEN[how]
    change(plain, key, **changes(plain.backend.store.get(key)))
    before = plain.backend.store.get(key)
    told = f"{state} of task {result.id} was not stored"
    if state == "RETRY":
        stored(app, KeyError("x"), state=state, id=result.id)
        assert told in caplog.text
    else:
        with pytest.raises(ResultNotStored, match=told) as caught:
            stored(app, KeyError("x") if state != "SUCCESS" else "new", state=state, id=result.id)
        assert isinstance(caught.value.__cause__, error)
    assert plain.backend.store.get(key) == before


# -- switching on, rotation


def test_switching_on(sealed, plain, stored):
    """In the documented order, every process reads what every other one writes, at every step."""
    off, on, strict = sealed(seal="off"), sealed(accept_unsealed=True), sealed()
    for old, new in ((plain, off), (off, on), (on, strict)):
        for id in [stored(app, "x" * 100_000).id for app in (old, new)]:
            for reader in (old, new):
                assert len(reader.AsyncResult(id).get(timeout=5)) == 100_000
    with pytest.raises(ResultNotRead, match="accept_unsealed"):
        strict.AsyncResult(stored(plain, 1).id).get(timeout=5)


def test_rotation(sealed, stored):
    """The new key is added behind, then moved to the front, then the old one goes."""
    steps = [sealed(), *(sealed(seal_keys=keys) for keys in ([KEY, OTHER], [OTHER, KEY], [OTHER]))]
    for old, new in pairwise(steps):
        for writer, reader in ((old, new), (new, old)):
            assert reader.AsyncResult(stored(writer, "v").id).get(timeout=5) == "v"
    with pytest.raises(ResultNotRead, match="seal_keys") as caught:
        steps[-1].AsyncResult(stored(steps[0], 1).id).get(timeout=5)
    assert isinstance(caught.value.__cause__, UnknownKey)


# -- chords


@pytest.fixture
def members(sealed, run):
    """``app, body, ticket, deliver = members(3)``: ``deliver(n)`` lets the n-th member finish, as a worker would."""

    def make(count):
        app = sealed()
        app.backend.mender.leave = lambda left: None
        app.sent = []

        @app.task(name="add")
        def add(x):
            return x

        @app.task(name="body")
        def body(values):
            return values

        body.apply_async = lambda args=(), kwargs=None, **options: app.sent.append(args[0])
        signature = body.s()
        result, ids = signature.freeze(), [uuid() for _ in range(count)]
        app.backend.apply_chord((uuid(), [app.AsyncResult(id) for id in ids]), signature)
        ticket = signature.options["celery_s3"]

        def deliver(number):
            request = {"chord": dict(signature), "group": ticket["group"], "group_index": number}
            run(add, number, id=ids[number], request=request)
            assert app.AsyncResult(ids[number]).get(timeout=5) == number

        return app, result, ticket, deliver

    return make


@pytest.mark.parametrize("count", [3, 40])
def test_a_chord(members, plain, count):
    """Parts, summaries, claim and manifest are sealed, and the body is sent as ever."""
    app, _, ticket, deliver = members(count)
    for number in range(count - 1):
        deliver(number)
    folder = app.backend.chords.folder(ticket["group"])
    entries = list(plain.backend.store.list(folder))
    assert len(entries) >= count
    assert all(SEAL in plain.backend.store.get(entry.key).metadata for entry in entries)
    deliver(count - 1)
    assert app.sent == [list(range(count))]


@pytest.mark.parametrize(("count", "name"), [(3, "0/1"), (40, "0/33"), (40, "1/0"), (3, "claim"), (40, "manifest")])
@pytest.mark.parametrize("how", ["changed", "plain"])
def test_a_chord_that_was_tampered_with_fails(members, plain, count, name, how):
    """A part, summary, claim or manifest that is not the fleet's fails the body, and no member is harmed."""
    app, body, ticket, deliver = members(count)
    for number in range(count - 1):
        deliver(number)
    folder = app.backend.chords.folder(ticket["group"])
    key = folder + name
    if name == "claim":
        plain.backend.store.put(key, b'{"owner": "me", "state": "sent", "lease": 1}', precondition=CREATE)
    else:
        change(plain, key, **BROKEN[how][0](plain.backend.store.get(key)))
    app.backend.chords._memory.drop()
    app.backend.chords._manifests = Remembered(32)
    deliver(count - 1)
    assert app.sent == []
    with pytest.raises(ChordError, match=f"s3://{app.backend.settings.bucket}/{key}: the object is not"):
        app.AsyncResult(body.id).get(timeout=5)
    if "/" in name:
        # its owner decided, once and for all
        assert app.backend.chords.claim(ticket["group"]).read().state == "failed"


def test_a_manifest_that_members_need(members, plain):
    """Where a member must read the manifest to know its slot, its own result is stored all the same."""
    app, body, ticket, deliver = members(2)
    ticket["flat"] = False
    change(plain, f"{app.backend.chords.folder(ticket['group'])}manifest", body=b"{}")
    for number in range(2):
        deliver(number)
    with pytest.raises(ChordError, match="manifest: the object is not"):
        app.AsyncResult(body.id).get(timeout=5)


def test_who_looks_after_chords(members, plain):
    """A bad manifest or claim does not keep anybody from seeing and mending the other chords."""
    chords = [members(2) for _ in range(3)]
    for *_, deliver in chords:
        deliver(0)
    folders = [app.backend.chords.folder(ticket["group"]) for app, _, ticket, _ in chords]
    change(plain, f"{folders[0]}manifest", body=b"{}")
    plain.backend.store.put(f"{folders[1]}claim", b"{}")
    app, (sick, well) = chords[0][0], (one[2]["group"] for one in chords[1:])
    states = {chord.group: (chord.state, chord.reason) for chord in app.backend.repairs.survey.chords()}
    assert states.keys() == {sick, well}
    assert states[well] == ("running", "")
    assert states[sick][0] == "stuck"
    assert "its claim cannot be trusted" in states[sick][1]
    app.backend.repairs.run()


# -- AWS KMS, as moto has it


@pytest.fixture
def kms(sqs, monkeypatch):
    """A client of moto's KMS, which has the keys alias/results and alias/other."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", sqs.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAKMS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-verified")
    client = botocore.session.Session().create_client("kms", region_name="us-east-1")
    known = {alias["AliasName"] for alias in client.list_aliases()["Aliases"]}
    for name in {"alias/results", "alias/other"} - known:
        client.create_alias(AliasName=name, TargetKeyId=client.create_key()["KeyMetadata"]["KeyId"])
    yield client
    client.close()


@pytest.fixture
def before_kms(kms, proxy_for, sqs, monkeypatch):
    """A proxy before moto's KMS, by which it is asked."""
    between = proxy_for(sqs)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", between.endpoint_url)
    return between


@pytest.fixture
def asked(before_kms):
    """``asked()``: the requests that KMS got since it was last asked for."""

    def count():
        records = before_kms.records()
        before_kms.reset()
        return Counter(record.headers.get("x-amz-target", "").removeprefix("TrentService.") for record in records)

    return count


def test_kms_is_asked_rarely(sealed, stored, asked, spends):
    """Ten objects are written for one request to KMS and read by another process for one; S3's stay the same."""
    writer, reader = (sealed(seal_keys=["kms://alias/results"]) for _ in range(2))
    with spends(PUT=10):
        results = [stored(writer, number) for number in range(10)]
    assert asked() == Counter(GenerateDataKey=1)
    with spends(GET=10):
        assert [writer.AsyncResult(result.id).get(timeout=5) for result in results] == list(range(10))
    assert asked() == Counter()
    with spends(GET=10):
        assert [reader.AsyncResult(result.id).get(timeout=5) for result in results] == list(range(10))
    assert asked() == Counter(Decrypt=1)


@pytest.mark.parametrize("seal", ["encrypt", "sign"])
def test_kms_by_id_and_arn(sealed, stored, kms, seal):
    """Keys may be named by id and ARN too, beside keys of the settings; a key under another name is another one."""
    about = kms.describe_key(KeyId="alias/results")["KeyMetadata"]
    for name in (about["KeyId"], about["Arn"]):
        app = sealed(seal=seal, seal_keys=[f"kms://{name}", KEY])
        result = stored(app, "v")
        assert sealed(seal_keys=[KEY, f"kms://{name}"]).AsyncResult(result.id).get(timeout=5) == "v"
        with pytest.raises(ResultNotRead, match="does not have"):
            sealed(seal_keys=["kms://alias/other"]).AsyncResult(result.id).get(timeout=5)


def test_kms_rotation_and_migration(sealed, stored, kms):
    """From a key of the settings to KMS, and from one KMS key to another, as with any key."""
    steps = [[KEY], ["kms://alias/results", KEY], ["kms://alias/other", "kms://alias/results"]]
    first, second, third = (sealed(seal_keys=keys) for keys in steps)
    assert second.AsyncResult(stored(first, 1).id).get(timeout=5) == 1
    assert third.AsyncResult(stored(second, 2).id).get(timeout=5) == 2


def test_a_token_that_kms_does_not_know(sealed, plain, stored, kms):
    """A header with a changed token is tampering, not trouble with KMS."""
    app = sealed(seal_keys=["kms://alias/results"])
    result = stored(app, 1)
    key = key_of(app, result.id)
    metadata = dict(plain.backend.store.get(key).metadata)
    start, token = metadata[SEAL].rsplit(".", 1)
    metadata[SEAL] = f"{start}.{token[:-4]}{'AAAA' if token[-4:] != 'AAAA' else 'BBBB'}"
    change(plain, key, metadata=metadata)
    with pytest.raises(ResultNotRead) as caught:
        result.get(timeout=5)
    assert isinstance(caught.value.__cause__, Tampered)
    assert token not in str(caught.value)


def test_a_key_that_kms_does_not_give(sealed, stored, kms):
    """A key that is not there is told with its name and the permissions that are needed."""
    with pytest.raises(ResultNotStored, match=r"GenerateDataKey kms://alias/none: .*kms:GenerateDataKey") as caught:
        stored(sealed(seal_keys=["kms://alias/none"]), 1)
    assert isinstance(caught.value.__cause__, KeyRefused)


def test_kms_that_does_not_answer(sealed, stored, proxy, monkeypatch, kms):
    """It is worth another try, says so, and nothing was written."""
    app = sealed(seal_keys=["kms://alias/results"], outage_patience=0, max_retries=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    proxy.reset()
    with pytest.raises(ResultNotStored, match="AWS KMS does not answer") as caught:
        stored(app, 1)
    assert isinstance(caught.value.__cause__, KeyUnavailable)
    assert app.backend.exception_safe_to_retry(caught.value)
    assert proxy.counts() == Counter()


@pytest.mark.parametrize("how", ["slow_down", "hang"])
def test_a_final_state_outlives_an_outage_of_kms(sealed, before_kms, caplog, how):
    """It is kept until its key is there, as in an outage of S3; a state that passes is dropped after 3 s."""
    app = sealed(seal_keys=["kms://alias/results"], max_retries=0, connect_timeout=0.5, read_timeout=0.5)
    before_kms.fail("*", how, times=-1)
    with ThreadPoolExecutor(8) as pool, caplog.at_level(logging.WARNING):
        finals = [pool.submit(app.backend.store_result, f"final-{number}", number, "SUCCESS") for number in range(7)]
        began = time.monotonic()
        app.backend.store_result("passing", None, "STARTED")
        assert time.monotonic() - began < 10  # far from an hour
        while "AWS KMS does not take what must not be lost" not in caplog.text:
            time.sleep(0.02)
        assert not any(one.done() for one in finals)
        before_kms.heal()
        for one in finals:
            one.result(30)
    assert "AWS KMS answers again" in caplog.text
    assert [app.AsyncResult(f"final-{number}").result for number in range(7)] == list(range(7))
    assert app.AsyncResult("passing").state == "PENDING"


def test_a_read_waits_for_kms_no_longer_than_its_caller(sealed, stored, before_kms):
    """`get(timeout=1)` ends in time where KMS hangs, also beside others that ask for the same key."""
    app = sealed(seal_keys=["kms://alias/results"])
    result = stored(sealed(seal_keys=["kms://alias/results"]), 1)
    before_kms.fail("*", "hang", times=-1)

    def ask():
        began = time.monotonic()
        with pytest.raises((TimeoutError, ResultNotRead)):
            app.AsyncResult(result.id).get(timeout=1)
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        assert max(one.result() for one in [pool.submit(ask) for _ in range(8)]) < 3
    before_kms.heal()
    assert app.AsyncResult(result.id).get(timeout=20) == 1


def test_no_data_key_in_the_log(sealed, stored, kms, caplog, monkeypatch):
    """botocore logs every answer at level DEBUG: not those with keys in them."""
    answers = []
    app, reader = (sealed(seal_keys=["kms://alias/results"]) for _ in range(2))
    for one in (app, reader):
        key = one.backend.store._ring.first
        monkeypatch.setattr(
            key, "_keep", lambda slot, made, keep=key._keep: answers.append(made[1].reveal()) or keep(slot, made)
        )
    with caplog.at_level(logging.DEBUG):
        result = stored(app, 1)
        assert reader.AsyncResult(result.id).get(timeout=5) == 1
    assert len(answers) == 3
    text = caplog.text + repr([record.__dict__ for record in caplog.records])
    assert "GenerateDataKey" in text
    for secret in answers:
        assert base64.b64encode(secret).decode() not in text
        assert repr(secret) not in text
