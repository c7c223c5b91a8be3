"""The claim check without a network: what is in a message, what is in the bucket, and when it is fetched."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from contextlib import contextmanager
from hashlib import sha256

import pytest
from celery import Celery
from celery._state import _task_stack
from celery.exceptions import ImproperlyConfigured
from celery.utils.saferepr import saferepr
from celery.worker.strategy import proto1_to_proto2
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, EncodeError
from kombu.message import Message
from kombu.serialization import dumps, loads, registry
from kombu.utils.json import dumps as kombu_json

from celery_s3 import claimcheck
from celery_s3.claimcheck import lazy, messages
from celery_s3.claimcheck.lazy import LazyArgs
from celery_s3.claimcheck.messages import STORED_FOR, Messages, sending_app
from celery_s3.errors import ConfigurationError, MessageNotRead, MessageNotStored, ServerFault
from celery_s3.settings import Settings
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool

INNER = ["json", "pickle", "yaml", "msgpack", "typed+json"]
BIG = "x" * 200_000
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Bench:
    """An app whose messages go to a bucket in memory.

    Attributes:
        now: the seconds that its clock shows.
    """

    def __init__(self, base="", **settings):
        self.app = Celery("bench", set_as_current=False, broker="memory://")
        claimcheck.install(self.app)
        self.app.conf.update(task_serializer="s3+json", accept_content=["s3+json", "json"])
        self.store, self.pool, self.now = MemoryStore(), Pool(4), 1000.0
        self.messages = Messages(
            self.store, self.pool, Settings(bucket="bucket", base=base, **settings), clock=lambda: self.now
        )
        messages._messages[self.app] = self.messages

    def pack(self, body, inner="json"):
        token = sending_app.set(self.app)
        try:
            return dumps(body, f"s3+{inner}")[2]
        finally:
            sending_app.reset(token)

    def unpack(self, payload, inner="json"):
        content_type = registry.name_to_type[f"s3+{inner}"]
        return loads(payload, content_type, "utf-8", accept={content_type})

    def body(self, *args, kwargs=None, **embed):
        return args, kwargs or {}, {**EMBED, **embed}

    @contextmanager
    def in_a_task(self):
        _task_stack.push(self.app.tasks["celery.backend_cleanup"])
        try:
            yield
        finally:
            _task_stack.pop()

    def verbs(self):
        return [verb for verb, _ in self.store.requests]


@pytest.fixture
def bench():
    """A bench inside of a task, as its function sees it."""
    one = Bench()
    with one.in_a_task():
        yield one
    one.pool.close()


@pytest.fixture
def outside():
    """Be a worker's main process; it returns to the task when it is called."""
    task = _task_stack.pop()
    entered = []
    yield lambda: entered.append(_task_stack.push(task))
    if not entered:
        _task_stack.push(task)


def old_body(*args, **kwargs):
    more = {"task": "t", "id": "1", "retries": 0, "eta": None, "callbacks": None, "errbacks": None, "chord": None}
    return {**more, "args": list(args), "kwargs": kwargs}


# -- what is in a message


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("body", [([1, "a"], {"b": None}, EMBED), old_body(1, a=2)], ids=["v2", "v1"])
def test_small_messages(bench, body, inner):
    """Up to the threshold a message has exactly the bytes of the inner serializer, and no request is made."""
    payload, plain = bench.pack(body, inner), dumps(body, inner)[2]
    assert payload == plain
    assert bench.unpack(payload, inner) == loads(plain, registry.name_to_type[inner], "utf-8", force=True)
    assert bench.store.requests == []


@pytest.mark.parametrize("inner", INNER)
def test_large_messages(bench, inner):
    """Above it the arguments take one PUT and the first look at them one GET; decoding takes none."""
    payload = bench.pack(bench.body(BIG, 2, kwargs={"more": BIG}), inner)
    assert len(payload) < 1000
    args, kwargs, embed = bench.unpack(payload, inner)
    assert bench.verbs() == ["PUT"]
    assert (lambda *args, **kwargs: (args, kwargs))(*args, **kwargs) == ((BIG, 2), {"more": BIG})
    assert embed == EMBED
    assert bench.verbs() == ["PUT", "GET"]


@pytest.mark.parametrize("inner", INNER)
def test_protocol_1(bench, inner):
    """A message of the first protocol keeps all but its arguments."""
    payload = bench.pack(old_body(BIG, key=BIG), inner)
    assert len(payload) < 1000
    found = bench.unpack(payload, inner)
    assert bench.verbs() == ["PUT"]
    assert found == old_body(BIG, key=BIG)


def test_one_of_both(bench):
    """Where there are no arguments, or no keyword arguments, the message says so itself."""
    args, kwargs, _ = bench.unpack(bench.pack(bench.body(kwargs={"key": BIG})))
    assert type(args) is list
    assert not args
    assert bench.verbs() == ["PUT"]
    assert kwargs["key"] == BIG
    args, kwargs, _ = bench.unpack(bench.pack(bench.body(BIG)))
    assert type(kwargs) is dict
    assert args == [BIG]


def test_the_object(bench):
    """What is stored is what the inner serializer makes of args and kwargs, under the SHA-256 of its bytes."""
    bench.pack(bench.body(BIG))
    key = bench.store.requests[0][1]
    stored = bench.store.get(key)
    assert key == f"celery-messages/{sha256(stored.body).hexdigest()}"
    assert json.loads(stored.body) == [[BIG], {}]
    assert stored.content_type == "application/json"


def test_stored_once(bench):
    """A process stores the same once an hour: after that its lifetime is to begin anew."""
    for _ in range(3):
        bench.pack(bench.body(BIG))
    assert bench.verbs() == ["PUT"]
    bench.now += STORED_FOR
    bench.pack(bench.body(BIG))
    assert bench.verbs() == ["PUT", "PUT"]


def test_compression(bench):
    """`task_compression` compresses the objects too; who reads them need not know."""
    compressed = Messages(bench.store, bench.pool, Settings(bucket="bucket"), "gzip")
    pointer = compressed.put(BIG.encode(), "text/plain", removable=False)
    assert bench.store.get(f"celery-messages/{pointer['object']}").size < 1000
    assert bench.messages.get(pointer["object"], pointer["at"]) == BIG.encode()


def test_parts(bench, monkeypatch):
    """A large object is fetched in parts, again from the start where another writer stores it meanwhile."""
    monkeypatch.setattr(messages, "PART_BYTES", 60_000)
    pointer = bench.messages.put(BIG.encode(), "text/plain", removable=False)
    assert bench.messages.get(pointer["object"], "") == BIG.encode()
    assert bench.verbs() == ["PUT", "GET", "GET", "GET", "GET"]


# -- callbacks, errbacks, chain and chord


def signature(*args, **kwargs):
    return {"task": "next", "args": list(args), "kwargs": kwargs, "options": {"task_id": "2"}, "immutable": False}


def test_they_travel_inline(bench):
    """Whatever a worker needs to report a failure is in the message, not in S3."""
    then = {"callbacks": [signature(1)], "errbacks": [signature()], "chain": [signature(2)], "chord": signature(3)}
    payload = bench.pack(bench.body(BIG, **then))
    assert bench.unpack(payload)[2] == then
    assert bench.verbs() == ["PUT"]


def test_their_large_arguments(bench):
    """Where they alone make the message too large, their arguments go to S3 each by itself; their options stay."""
    payload = bench.pack(bench.body(1, chain=[signature(BIG, a=1), signature(5)], chord=signature(key=BIG)))
    assert len(payload) < 2000
    args, kwargs, embed = bench.unpack(payload)
    assert (args, kwargs, embed["chain"][1]) == ([1], {}, signature(5))
    assert embed["chord"]["options"] == {"task_id": "2"}
    assert bench.verbs() == ["PUT", "PUT"]
    again = bench.pack((args, kwargs, embed))
    assert again == payload
    assert bench.verbs() == ["PUT", "PUT"]
    assert embed["chain"][0] == signature(BIG, a=1)
    assert embed["chord"] == signature(key=BIG)


def test_inside_a_canvas(bench):
    """So it is with the tasks inside of chains, groups and chords; errbacks keep everything."""
    inner = {"task": "celery.chain", "subtask_type": "chain", "args": [], "options": {}, "kwargs": {}}
    canvas = {**inner, "kwargs": {"tasks": [signature(BIG), {**inner, "kwargs": {"tasks": [signature(BIG)]}}]}}
    payload = bench.pack(bench.body(chord=canvas))
    assert len(payload) < 2500
    embed = bench.unpack(payload)[2]
    assert embed["chord"]["kwargs"]["tasks"][1]["kwargs"]["tasks"] == [signature(BIG)]
    assert embed["chord"] == canvas
    assert BIG in bench.pack(bench.body(errbacks=[signature(BIG)]))


# -- not fetched, until it is used


def test_nothing_celery_does_fetches(bench, outside):
    """What a worker's main process does with a message makes no request, in any pool."""
    decoded = bench.unpack(bench.pack(bench.body(BIG, kwargs={"key": BIG})))
    assert "args" not in decoded  # celery.worker.strategy asks every message
    args, kwargs, _ = decoded
    assert saferepr(args) == "[<400,019 bytes of arguments in S3>]"
    assert proto1_to_proto2(Message(), bench.unpack(bench.pack(old_body(BIG))))
    assert len(pickle.dumps((args, kwargs))) < 1000  # as the child gets it
    assert args != "args"
    assert kwargs.items
    assert bench.verbs() == ["PUT", "PUT"]
    args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
    outside()
    assert (args, kwargs) == ([BIG], {"key": BIG})
    assert bench.verbs() == ["PUT", "PUT", "GET"]


def test_lists_and_dicts(bench):
    """The arguments are a list and a dict, for all that can be done with one; fetched ones are copied as such."""
    wanted_args, wanted_kwargs = [BIG, 2, 3], {"a": BIG, "b": 2}

    def fresh():
        args, kwargs, _ = bench.unpack(bench.pack(bench.body(*wanted_args, kwargs=wanted_kwargs)))
        return args, kwargs

    for look in (list, tuple, len, bool, copy.copy, copy.deepcopy, spread, json.dumps, lambda args: args[1:]):
        assert look(fresh()[0]) == look(wanted_args)
    for look in (dict, list, len, bool, copy.copy, copy.deepcopy, spread, json.dumps, lambda kwargs: dict(kwargs, c=1)):
        assert look(fresh()[1]) == look(wanted_kwargs)
    args, kwargs = fresh()
    args.append(4)
    kwargs.update(c=1)
    assert (args, kwargs) == ([BIG, 2, 3, 4], {"a": BIG, "b": 2, "c": 1})
    assert type(pickle.loads(pickle.dumps(args))) is list


def spread(arguments):
    return {**arguments} if isinstance(arguments, dict) else [*arguments]


def test_past_the_methods(bench):
    """What looks past a list's methods, as adding it to another list does, finds what cannot be sent, not nothing."""
    args, _, _ = bench.unpack(bench.pack(bench.body(BIG)))
    both = [1] + args  # noqa: RUF005
    assert repr(both) == "[1, <200,010 bytes of arguments in S3>]"
    assert bench.verbs() == ["PUT"]
    assert bench.unpack(bench.pack((both, {}, EMBED)))[0] == [1, BIG]


def test_inspect(bench, outside):
    """What `celery inspect active` is told of arguments in S3 is their size, at no request."""
    args, kwargs, _ = bench.unpack(bench.pack(bench.body(BIG, kwargs={"key": 1})))
    answer = json.loads(dumps({"active": {"args": args, "kwargs": kwargs}}, "s3+json")[2])
    assert answer["active"]["args"] == ["<200,018 bytes of arguments in S3>"]
    assert bench.verbs() == ["PUT"]


def test_the_main_process_never_fetches(bench, outside):
    """In a worker's main process one text stands for the arguments; sent again it is the same pointer."""
    payload = bench.pack(bench.body(BIG, 2, kwargs={"key": BIG}))
    args, kwargs, _ = bench.unpack(payload)
    signed = bench.app.signature("t", args=args, kwargs=kwargs)
    assert bench.pack((signed.args, signed.kwargs, EMBED)) == payload
    assert bench.verbs() == ["PUT"]


def test_partial_arguments(bench, outside):
    """Where others come to arguments that are in S3, they are put together."""
    chord = bench.unpack(bench.pack(bench.body(chord=signature(BIG, key=BIG))))[2]["chord"]
    clone = bench.app.signature(chord).clone(args=([1, 2],), kwargs={"more": 3})
    outside()
    args, kwargs, _ = bench.unpack(bench.pack((clone.args, clone.kwargs, EMBED)))
    assert (args, kwargs) == ([[1, 2], BIG], {"key": BIG, "more": 3})


def test_part_of_them(bench, outside):
    """Sent again without its keyword arguments, a message has none."""
    args, kwargs, _ = bench.unpack(bench.pack(bench.body(BIG, kwargs={"key": BIG})))
    outside()
    assert bench.unpack(bench.pack((tuple(lazy.args_as_they_are(args)), {}, EMBED)))[:2] == [[BIG], {}]
    assert bench.unpack(bench.pack(((), kwargs, EMBED)))[:2] == [[], {"key": BIG}]


def test_nested_in_others(bench, outside):
    """Unfetched arguments inside other arguments are an error, not lost."""
    args, _, _ = bench.unpack(bench.pack(bench.body(BIG)))
    with pytest.raises(EncodeError, match="cannot be sent like this"):
        bench.pack(bench.body([args]))
    with pytest.raises(EncodeError, match="cannot be sent like this"):
        bench.pack(bench.body([lazy.args_as_they_are(args)]), "pickle")
    assert kombu_json(args) == '["<200,010 bytes of arguments in S3>"]'


# -- what can go wrong


def test_gone(bench):
    """An object that is no longer there is one error, which names it and the remedy; it is asked for once."""
    args, kwargs, _ = bench.unpack(bench.pack(bench.body(BIG, kwargs={"key": 1})))
    bench.store.delete(bench.store.requests[0][1])
    for look in (lambda: args[0], lambda: kwargs["key"], lambda: list(args)):
        with pytest.raises(
            MessageNotRead, match=r"not in s3://bucket/celery-messages/\w{64} any more: .*lifecycle"
        ) as caught:
            look()
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert bench.verbs().count("GET") == 1


def test_another_bucket(bench):
    """Where producer and worker use different buckets, the error names both."""
    other = Bench(base="elsewhere/")
    args, _, _ = bench.unpack(other.pack(other.body(BIG)))
    with pytest.raises(
        MessageNotRead, match=r"s3://bucket/celery-messages/\w+: its producer .* s3://bucket/elsewhere/"
    ):
        len(args)


def test_exchanged(bench):
    """An object whose bytes are not those that the message names is never a value."""
    args, _, _ = bench.unpack(bench.pack(bench.body(BIG)))
    bench.store.put(bench.store.requests[0][1], b'[["other"], {}]')
    with pytest.raises(MessageNotRead, match="not what was stored there"):
        len(args)


def test_store_errors(bench):
    """A failing bucket fails the sending, with a reason, and the use of arguments, not their decoding."""
    bench.store.faults.append(Fault(ServerFault("out"), times=1))
    reason = r"arguments \(200,010 bytes\) were not stored: .*the server failed"
    with pytest.raises(EncodeError, match=reason) as caught:
        bench.pack(bench.body(BIG))
    assert isinstance(caught.value.args[0], MessageNotStored)
    args, _, _ = bench.unpack(bench.pack(bench.body(BIG)))
    bench.store.faults.append(Fault(ServerFault("out"), times=1))
    with pytest.raises(MessageNotRead, match="the server failed"):
        len(args)


def test_the_name_fixes_the_type(bench):
    """What `s3+json` points to is decoded as JSON, whatever it is: never a way to pickle."""
    pointer = bench.messages.put(pickle.dumps(([], {})), "application/x-python-serialize", removable=False)
    args, _, _ = bench.unpack(json.dumps([[], {}, {**EMBED, "celery_s3": pointer}]))
    with pytest.raises(MessageNotRead, match="cannot be decoded"):
        len(args)


def test_accept_content(bench):
    """Each type is its own for `accept_content`; without one, none of them is accepted."""
    payload = bench.pack(bench.body(1), "pickle")
    content_type = registry.name_to_type["s3+pickle"]
    for accept in (None, {"application/json"}, {registry.name_to_type["s3+json"]}):
        with pytest.raises(ContentDisallowed):
            loads(payload, content_type, "binary", accept=accept)


garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
)
fields = dict.fromkeys(("object", "size", "at", "args", "kwargs"), garbage)


@pytest.fixture(scope="module")
def some_bench():
    one = Bench()
    with one.in_a_task():
        yield one
    one.pool.close()


@given(pointer=garbage | st.fixed_dictionaries({}, optional=fields))
def test_damaged_pointers(some_bench, pointer):
    """A pointer of any shape is decoded, and is our error where it is used."""
    chain = [{"args": 1, "kwargs": 2, "celery_s3": pointer}]
    body = [[], {}, {**EMBED, "chain": chain, "celery_s3": pointer}]
    args, kwargs, embed = some_bench.unpack(json.dumps(body))
    assert repr((args, kwargs, embed))
    for arguments in (args, kwargs):
        if type(arguments) not in (list, dict):
            with pytest.raises(MessageNotRead, match="pointer is damaged"):
                len(arguments)


@given(data=garbage)
def test_other_data(data):
    """What is no task message goes through as it is."""
    assert loads(dumps(data, "s3+json")[2] or "null", registry.name_to_type["s3+json"], "utf-8", force=True) == data


# -- which app


def test_not_installed():
    """Without `install` a task message is an error that says what to do."""
    app = Celery("plain", set_as_current=False, broker="memory://")
    app.conf.task_serializer = "s3+json"
    with pytest.raises(EncodeError, match=r"celery_s3\.claimcheck\.install\(app\)"):
        app.send_task("t", (1,), ignore_result=True)


def test_several_apps():
    """Each app's messages go to its own bucket."""
    first, second = Bench(base="first/"), Bench(base="second/")
    for one in (first, second):
        one.app.send_task("t", (BIG,), ignore_result=True)
    assert [key[:6] for _, key in first.store.requests + second.store.requests] == ["first/", "second"]


def test_eager(bench):
    """Eager mode makes no request, whatever the size."""
    bench.app.conf.task_always_eager = True

    def length(text):
        return len(text)

    task = bench.app.task(length, shared=False)
    assert task.delay(BIG).get() == len(BIG)
    assert task.apply((BIG,)).get() == len(BIG)
    assert bench.store.requests == []


def test_other_serializers(bench):
    """An installed app's messages by another serializer are that serializer's."""
    bench.app.conf.accept_content = ["json", "s3+json"]
    for serializer in ("json", "yaml", "pickle", "msgpack"):
        bench.app.send_task("t", (BIG,), ignore_result=True, serializer=serializer)
    assert bench.store.requests == []


def test_settings(bench):
    """Serializers in the wrong place are told when the first message is sent."""
    bench.app.conf.update(result_serializer="s3+json")
    with pytest.raises(ImproperlyConfigured, match=r"result_serializer is 's3\+json'.* Set 'json'"):
        bench.app.send_task("t")
    with pytest.raises(ConfigurationError, match="result_serializer"):
        bench.app.amqp.TaskConsumer(None)  # a worker that starts
    bench.app.conf.update(result_serializer="json", accept_content=["json"])
    with pytest.raises(ConfigurationError, match=r"accept_content is \['json'\]: add 's3\+json'"):
        bench.app.send_task("t")
    bench.app.conf.update(accept_content=["s3+json"])
    with pytest.raises(ConfigurationError, match=r"result_serializer is 'json', but accept_content is .* add 'json'"):
        bench.app.send_task("t")
    bench.app.conf.update(result_accept_content=["json"])
    assert bench.app.send_task("t", ignore_result=True)


def test_install():
    """Twice is as good as once; a class of the app's own, or coming too late, is told with the remedy."""
    app = Celery("app", set_as_current=False)
    claimcheck.install(app)
    claimcheck.install(app)
    assert type(app.amqp).__name__ == "ClaimCheckAMQP"
    late = Celery("late", set_as_current=False, broker="memory://")
    assert late.amqp
    with pytest.raises(ConfigurationError, match="where the app is made"):
        claimcheck.install(late)
    with pytest.raises(ConfigurationError, match="derive it from"):
        claimcheck.install(Celery("own", set_as_current=False, amqp="proj:AMQP"))


def test_import():
    """kombu loads the entry points of every process: they bring in neither Celery nor an S3 client."""
    script = "import sys, kombu.serialization; print(sorted(set(sys.modules) & {'celery', 'boto3', 'obstore'}))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert "s3+json" in registry.name_to_type


# -- removed at success


def test_unique(bench):
    """With `message_cleanup` 'success' each message has an object of its own, signatures share theirs."""
    mine = Bench(message_cleanup="success")
    for _ in range(2):
        mine.pack(mine.body(BIG, chord=signature(BIG + BIG)))
        mine.pack(mine.body(1, chord=signature(BIG + BIG)))
    names = [key.removeprefix("celery-messages/") for _, key in mine.store.requests]
    assert sum("." in name for name in names) == 2
    assert len(set(names)) == len(names) == 3
    args = mine.unpack(mine.pack(mine.body(BIG)))[0]
    assert isinstance(args, LazyArgs)
    assert args.object.split(".")[0] == names[0].split(".")[0]
