"""A bucket in which an attacker puts, deletes, swaps, cuts and replays, while workers and clients go on using it.

What holds whatever he does stands in docs/security.md. ``make soak`` plays for longer (``HOSTILE_STEPS``).
"""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.result import GroupResult
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_s3 import S3File, bucket
from celery_s3.backends import s3
from celery_s3.bucket import Opened
from celery_s3.errors import CeleryS3Error, FileNotRead
from celery_s3.expiry.sweep import Sweep, areas
from celery_s3.keys import Layout
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
    f"{LAYOUT.chords}g/manifest",
    LAYOUT.probe,
]
#: A neighbour's objects, some of them under our prefixes.
LETTERS = ("letter.pdf", f"{LAYOUT.messages}2025/letter.pdf", f"{LAYOUT.files}letter.pdf", "celery-task-metadata")
GARBAGE = st.binary(max_size=30) | st.sampled_from(
    [
        b'{"status":"SUCCESS","result":"forged","task_id":"a","children":[]}',
        b'{"status":"FAILURE","result":{"exc_type":"system","exc_message":["true"],"exc_module":"os"}}',
        b'{"$type":"py.set","value":[[]]}',
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x00",
        b"",
    ]
)
METADATA = st.dictionaries(
    st.sampled_from(["celery-state", "celery-seal", "celery-children", "celery-expires", "celery-task", "celery-file"]),
    st.sampled_from(["SUCCESS", "FAILURE", "STARTED", "1", "[[[[", '[[["x", null], null]]', "\x1b[31m"]),
    max_size=3,
)

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
            self.store, MultipartWriter(self.store, self.pool), Settings(bucket="memory", seal_keys=self.keys)
        )
        conditional = SimpleNamespace(supported=lambda: True)
        opened = Opened(sealed, self.store, writer, Tally(), conditional, self.pool)  # type: ignore[arg-type]
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(s3, "open_store", lambda _: opened)
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
        watching.clear()
        on.watch = True

    def teardown(self) -> None:
        on.watch = False
        self.app.close()
        self.pool.close()
        self.patch.undo()

    @initialize()
    def letters(self) -> None:
        for key in LETTERS:
            self.store.put(key, b"a neighbour's")

    def mine(self) -> list[str]:
        return [entry.key for entry in self.store.list("") if entry.key not in LETTERS]

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

    @rule(id=IDS)
    def read(self, id: str) -> None:
        try:
            meta = self.backend.get_task_meta(id, cache=False)
        except CeleryS3Error:
            return
        value = meta["result"]
        if isinstance(value, S3File):
            try:
                value = b"".join(value.chunks())
            except FileNotRead:
                return
        if self.keys and meta["status"] == "SUCCESS":
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
        Sweep(self.store, self.pool, listing, lambda: iter(()), uploads, now=lambda: now).run()

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
