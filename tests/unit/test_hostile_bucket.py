"""A bucket in which an attacker puts, deletes, swaps, cuts and replays, while workers and clients go on using it.

He forges notices, too, which bring bytes that stand for a bucket's. Results, files, groups, messages, chords, rules and
commands are those of the product; S3 is a store in memory, the broker a list.

What holds whatever he does stands in docs/security.md. ``make soak`` plays for longer (``HOSTILE_STEPS``).
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chord
from celery.app.task import Context
from celery.bin.base import CLIContext
from celery.result import GroupResult
from celery.signals import before_task_publish
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_s3 import S3File, bucket
from celery_s3.backends import s3
from celery_s3.bucket import Opened
from celery_s3.claimcheck.messages import messages_of
from celery_s3.cli import init as cli_init
from celery_s3.cli import s3 as commands
from celery_s3.cli import sweep as cli_sweep
from celery_s3.errors import CeleryS3Error, FileNotRead
from celery_s3.expiry import service as expiry_service
from celery_s3.expiry.sweep import Sweep, areas
from celery_s3.keys import Layout, chord_folder
from celery_s3.notices.notice import Noticing, loads
from celery_s3.results.waiter import in_notice
from celery_s3.settings import Secret, Settings
from celery_s3.store.counting import Tally
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.uploads import MultipartWriter

#: A worker whose result is not stored logs why, and kombu warns of what it is to decode.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = int(os.environ.get("HOSTILE_STEPS", "15"))
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
#: Chooses among what stands there, which hypothesis must not know: keys of files are random.
NUMBER = st.integers(0, 999)
IDS = st.sampled_from(["a", "b", "c"])
LAYOUT = Layout()
#: Where the attacker may write: whatever celery-s3 reads, and beside it.
PLACES = [
    *map(LAYOUT.result_key, "abc"),
    LAYOUT.group_key("g"),
    f"{LAYOUT.files}a/{'0' * 32}",
    f"{LAYOUT.messages}{'0' * 64}",
    *(f"{LAYOUT.chords}g/{name}" for name in ("manifest", "claim", "0/0", "1/0", "added/a")),
    LAYOUT.mended,
    LAYOUT.probe,
]
IN_CHORD = ("manifest", "claim", "0/0", "0/1", "0/2", "1/0", "added/a", "letter.pdf")
#: A neighbour's objects, some of them under our prefixes.
LETTERS = (
    "letter.pdf",
    f"{LAYOUT.messages}2025/letter.pdf",
    f"{LAYOUT.files}letter.pdf",
    f"{LAYOUT.chords}2025/letter.pdf",
    "celery-task-metadata",
)
THEIRS = {"ID": "theirs\x1b[31m", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}}
#: What the attacker would have sent, and the part that is missing for it.
EVIL = b'{"ids":["a"],"nesting":null,"root":null,"nonce":""}\n{"task":"evil","args":[],"kwargs":{},"options":{}}'
FORGED_PART = b'[]\n["a","SUCCESS","forged"]'
GARBAGE = st.binary(max_size=30) | st.sampled_from(
    [
        b'{"status":"SUCCESS","result":"forged","task_id":"a","children":[]}',
        b'{"status":"FAILURE","result":{"exc_type":"system","exc_message":["true"],"exc_module":"os"}}',
        b'{"$type":"py.set","value":[[]]}',
        b"cos\nsystem\n(S'true'\ntR.",
        b'{"owner":"x","state":"claimed","lease":1,"nonce":""}',
        b'{"owner":"x","state":"sent","lease":1e5}',
        EVIL,
        FORGED_PART,
        b"[28]\n" + FORGED_PART,
        b"\x00",
        b"",
    ]
)
METADATA = st.dictionaries(
    st.sampled_from(["celery-state", "celery-seal", "celery-children", "celery-expires", "celery-task", "celery-file"]),
    st.sampled_from(["SUCCESS", "FAILURE", "STARTED", "1", "[[[[", '[[["x", null], null]]', "\x1b[31m"]),
    max_size=3,
)

#: What a forged notice says; more than metadata of S3 can hold.
TOLD = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["application/x-python-serialize", "\ud800", "", 5]),
        "metadata": METADATA | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        "key": st.sampled_from([LAYOUT.result_key("b"), LAYOUT.probe, 5]),
    },
)
COMMANDS = (
    "ls",
    "ls --json",
    "show a",
    "show a --json",
    "show g",
    "sweep",
    "stats",
    "wait a --timeout 0s",
    "chords a",
    "chords --all",
    "chords --repair",
    "forget --yes --state FAILURE",
    "forget --yes a",
    "init --yes",
    "init --yes --json",
)
#: What members of chords return.
VALUES = [f"value-{number}" for number in range(10)]

#: The audit events of code that runs because of what was read.
HARM = frozenset({"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"})
watching: list[str] = []
on = SimpleNamespace(watch=False)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if on.watch and event in HARM:
        watching.append(f"{event}: {args!r:.100}")


sys.addaudithook(_audit)


class Hostile(RuleBasedStateMachine):
    """Workers, clients and the cleanup, an attacker and a neighbour at one bucket."""

    keys: tuple[Secret, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.time = time.time()  # readers go by this machine's clock
        self.store = MemoryStore(clock=lambda: self.time)
        self.pool = Pool(1)
        sealed, writer = bucket._sealed(
            Noticing(self.store), MultipartWriter(self.store, self.pool), Settings(bucket="memory", seal_keys=self.keys)
        )
        conditional = SimpleNamespace(supported=lambda: True)
        opened = Opened(sealed, self.store, writer, Tally(), conditional, self.pool)  # type: ignore[arg-type]
        self.lifecycle: list[dict[str, Any]] = [THEIRS]
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(s3, "open_store", lambda _: opened)
        for module in (cli_init, cli_sweep, expiry_service):
            self.patch.setattr(module, "Control", self._control)
        self.app = Celery("hostile", set_as_current=False, broker="memory://")
        given = {"bucket": "memory"} | ({"seal_keys": KEY} if self.keys else {})
        self.app.conf.update(
            result_backend="celery_s3.backends.S3Backend",
            s3_backend_settings=given,
            result_accept_content=["json", "typed+json"],
        )
        self.app.set_current()
        self.backend: Any = self.app.backend
        #: what honest workers have stored, by id, and all objects that ever stood there
        self.truth: dict[str, list[Any]] = {}
        self.seen: list[Any] = []
        #: messages with a pointer, and its content; members that wait for a worker; the ids of bodies
        self.pointers: list[tuple[dict[str, Any], bytes]] = []
        self.members: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.bodies: set[str] = set()
        #: what was sent and should not have been
        self.wrong: list[str] = []
        before_task_publish.connect(self._published)
        watching.clear()
        on.watch = True

    def teardown(self) -> None:
        on.watch = False
        before_task_publish.disconnect(self._published)
        self.app.close()
        self.pool.close()
        self.patch.undo()

    @initialize()
    def letters(self) -> None:
        for key in LETTERS:
            self.store.put(key, b"a neighbour's")

    def mine(self) -> list[str]:
        return [entry.key for entry in self.store.list("") if entry.key not in LETTERS]

    def _control(self, settings: Any) -> Any:
        """The bucket's settings, as `init` and `sweep` see them."""
        return SimpleNamespace(
            settings=settings,
            skew=0.0,
            region=lambda: "us-east-1",
            public_access_blocked=lambda: True,
            versioning=lambda: "",
            uploads=lambda prefix: (),
            lifecycle=lambda: list(self.lifecycle),
            put_lifecycle=lambda rules, replacing: setattr(self, "lifecycle", list(rules)),
        )

    def _published(self, sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        """A message of a member, or of a body: that one is what its producer wrote, and its arguments are values."""
        args, kwargs, embed = body
        if sender == "member":
            self.members.append((headers, json.loads(json.dumps(embed))))
            return
        honest = sender == "body" and headers["id"] in self.bodies and not kwargs and not embed["chord"]
        if not honest or (self.keys and any(value not in VALUES for value in args[0])):
            self.wrong.append(f"{sender} {headers['id']} was sent with {args!r}")

    def record(self) -> None:
        self.seen += [self.store.get(key) for key in self.mine()]

    # -- who uses it

    @rule(id=IDS, value=st.integers(0, 9) | st.binary(max_size=5), state=st.sampled_from(["SUCCESS", "STARTED"]))
    def store_result(self, id: str, value: Any, state: str) -> None:
        self.truth.setdefault(id, []).append(value)
        with suppress(CeleryS3Error):
            self.backend.store_result(id, value, state)
        self.record()

    @rule(id=IDS, content=st.binary(min_size=1, max_size=20))
    def store_file(self, id: str, content: bytes) -> None:
        self.truth.setdefault(id, []).append(content)
        with suppress(CeleryS3Error):
            self.backend.store_result(id, S3File(io.BytesIO(content), name="f"), "SUCCESS")
        self.record()

    @rule()
    def save_group(self) -> None:
        self.backend.save_group("g", GroupResult("g", [self.app.AsyncResult("a")]))
        self.record()

    def _meta(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.backend.get_task_meta(id, cache=False)
        return found

    @rule(id=IDS)
    def read(self, id: str) -> None:
        try:
            meta = self._meta(id)
        except CeleryS3Error:
            return
        if self.keys and meta["status"] == "SUCCESS":
            self._check(id, meta["result"])

    def _check(self, id: str, value: Any) -> None:
        """Whether an honest worker has stored this for that task."""
        if isinstance(value, S3File):
            try:
                value = b"".join(value.chunks())
            except FileNotRead:
                return
        assert value in self.truth.get(id, [])

    @rule()
    def read_group(self) -> None:
        try:
            found = self.backend.restore_group("g", cache=False)
        except CeleryS3Error:
            return
        if self.keys and found is not None:
            assert [one.id for one in found.results] == ["a"]

    @rule(id=IDS)
    def forget(self, id: str) -> None:
        with suppress(CeleryS3Error):
            self.backend.forget(id)

    @rule(days=st.sampled_from([0, 1, 20]))
    def clean_up(self, days: int) -> None:
        now = self.time + 86_400 * days
        listing = areas(LAYOUT, self.backend.terms)
        uploads: Any = SimpleNamespace(stale=lambda now: [])
        repairs = self.backend.mending.repairs(lambda: self._later(days=days))
        Sweep(self.store, self.pool, listing, repairs.remains, uploads, now=lambda: now).run()

    @rule(content=st.binary(max_size=40), removable=st.booleans())
    def store_message(self, content: bytes, removable: bool) -> None:
        self.pointers.append((messages_of(self.app).put(content, "application/json", removable=removable), content))
        self.record()

    @rule(which=NUMBER)
    def read_message(self, which: int) -> None:
        if self.pointers:
            pointer, content = self.pointers[which % len(self.pointers)]
            with suppress(CeleryS3Error):
                assert messages_of(self.app).get(pointer["object"], pointer["at"]) == content

    @rule(size=st.integers(1, 3))
    def apply_chord(self, size: int) -> None:
        body = self.app.signature("body").clone()
        body.freeze()
        self.bodies.add(body.id)
        chord([self.app.signature("member") for _ in range(size)], app=self.app)(body)
        self.record()

    @rule(which=NUMBER, value=st.integers(0, 9), again=st.booleans(), redelivered=st.booleans())
    def run_member(self, which: int, value: int, again: bool, redelivered: bool = False) -> None:
        """A worker runs a member; its message may come again."""
        if not self.members:
            return
        which %= len(self.members)
        headers, embed = self.members[which] if again else self.members.pop(which)
        request = Context(headers, **embed, called_directly=False, delivery_info={"redelivered": redelivered})
        with suppress(CeleryS3Error):
            self.backend.mark_as_done(headers["id"], VALUES[value], request=request)
        self.record()

    @rule(minutes=st.sampled_from([0, 5, 60 * 24 * 20]))
    def mend(self, minutes: int) -> None:
        mending = self.backend.mending
        mending.repairs(lambda: self._later(minutes=minutes)).run(mend=mending.trusted)

    def _later(self, **passed: float) -> datetime:
        return datetime.fromtimestamp(self.time, UTC) + timedelta(**passed)

    @rule(command=st.sampled_from(COMMANDS))
    def run_command(self, command: str) -> None:
        """An operator, who says no where he is asked whether a body of the bucket is to be sent."""
        obj = CLIContext(app=self.app, no_color=True, workdir=None)
        done = CliRunner().invoke(commands, command.split(), obj=obj, input="n\n")
        if not isinstance(done.exception, SystemExit | CeleryS3Error | None):
            raise done.exception
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", done.output)

    # -- who is not to be trusted

    @rule(key=st.sampled_from(PLACES), body=GARBAGE, metadata=METADATA, typed=st.booleans())
    def put(self, key: str, body: bytes, metadata: dict[str, str], typed: bool) -> None:
        content_type = "application/x-typed+json" if typed else "application/x-python-serialize"
        self.store.put(key, body, metadata=metadata, content_type=content_type)

    @rule(id=IDS)
    def forge(self, id: str) -> None:
        body = f'{{"status":"SUCCESS","result":"forged","task_id":"{id}","children":[]}}'.encode()
        metadata = {"celery-state": "SUCCESS"}
        self.store.put(LAYOUT.result_key(id), body, metadata=metadata, content_type="application/json")

    @rule(which=NUMBER, name=st.sampled_from(IN_CHORD), body=GARBAGE)
    def put_in_chord(self, which: int, name: str, body: bytes) -> None:
        if self.members:
            group = self.members[which % len(self.members)][0]["group"]
            self.store.put(f"{LAYOUT.chords}{chord_folder(group)}{name}", body)

    @rule()
    def forge_chord(self) -> None:
        """Everything that a chord needs whose body is to be sent, and nobody has."""
        self.store.put(f"{LAYOUT.chords}g/manifest", EVIL)
        self.store.put(f"{LAYOUT.chords}g/0/0", FORGED_PART)

    @rule(id=IDS, which=NUMBER, told=TOLD, body=GARBAGE, replayed=st.booleans())
    def forge_notice(self, id: str, which: int, told: dict[str, Any], body: bytes, replayed: bool) -> None:
        """Who waits is told something that stood in the bucket once, or garbage."""
        said: dict[str, Any] = {"key": LAYOUT.result_key(id), "type": "application/json", "metadata": {}}
        if replayed and self.seen:
            old = self.seen[which % len(self.seen)]
            said |= {"type": old.content_type, "metadata": dict(old.metadata)}
            body = old.body
        notice = loads(json.dumps(said | told).encode() + b"\n" + body)
        meta = in_notice(id, self._meta, notice.stored) if notice is not None else None
        if self.keys and meta is not None and meta["status"] == "SUCCESS":
            self._check(id, meta["result"])

    @rule(which=NUMBER)
    def delete(self, which: int) -> None:
        if keys := self.mine():
            self.store.delete(keys[which % len(keys)])

    @rule(which=NUMBER)
    def replay(self, which: int) -> None:
        if self.seen:
            old = self.seen[which % len(self.seen)]
            self._write(old.key, old, old.body)

    @rule(which=NUMBER, key=st.sampled_from(PLACES))
    def put_elsewhere(self, which: int, key: str) -> None:
        if self.seen:
            old = self.seen[which % len(self.seen)]
            self._write(key, old, old.body)

    @rule(which=NUMBER, garbage=GARBAGE, at=NUMBER, cut=st.booleans())
    def change(self, which: int, garbage: bytes, at: int, cut: bool) -> None:
        if keys := self.mine():
            old = self.store.get(keys[which % len(keys)])
            at %= len(old.body) + 1
            self._write(old.key, old, old.body[:at] + garbage + (b"" if cut else old.body[at:]))

    def _write(self, key: str, old: Any, body: bytes) -> None:
        self.store.put(key, body, metadata=old.metadata, content_type=old.content_type)

    # -- what holds

    @invariant()
    def the_neighbours_objects_stand(self) -> None:
        for key in LETTERS:
            assert self.store.get(key).body == b"a neighbour's"

    @invariant()
    def no_rule_deletes_them(self) -> None:
        assert THEIRS in self.lifecycle
        expiring = [one["Filter"]["Prefix"] for one in self.lifecycle if "Expiration" in one]
        assert not [key for key in LETTERS for prefix in expiring if key.startswith(prefix)]

    @invariant()
    def only_honest_bodies_are_sent(self) -> None:
        assert self.wrong == []

    @invariant()
    def nothing_has_run(self) -> None:
        assert watching == []


class HostileSealed(Hostile):
    """The same with keys, which the attacker does not have: what is read as a value was stored as that task's."""

    keys = (Secret(KEY),)


PLAY = settings(
    max_examples=25 * max(1, STEPS // 15),
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHostile = Hostile.TestCase
TestHostile.settings = PLAY
TestHostileSealed = HostileSealed.TestCase
TestHostileSealed.settings = PLAY
