"""What the tests of chords' collaborators have in common: a bucket in memory, and a host that is no Celery backend."""

from __future__ import annotations

import json
from types import SimpleNamespace

from celery_s3.chords import Chords, Manifest, mender
from celery_s3.chords.ticket import TICKET
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool

LEASE = 30


class Host:
    """What chords need of Celery's backend, in JSON and a dict."""

    def __init__(self, app=None):
        self.app = app
        self.results = {}
        self.returned = []
        self.errors = []

    def encode(self, data):
        return json.dumps(data)

    def decode(self, payload):
        return json.loads(payload)

    def encode_result(self, result, state):
        return str(result) if isinstance(result, BaseException) else result

    def exception_to_python(self, exc):
        return RuntimeError(exc)

    def get_task_meta(self, task_id, cache=True):
        state, result = self.results.get(task_id, ("PENDING", None))
        return {"status": state, "result": result}

    def task_result_exists(self, task_id):
        return task_id in self.results

    def store_result(self, task_id, result, state, traceback=None, request=None):
        self.results[task_id] = (state, result)

    def on_chord_part_return(self, request, state, result):
        self.returned.append((request.id, state, result))

    def chord_error_from_stack(self, callback, exc):
        self.errors.append((callback.id, exc))
        self.results[callback.id] = ("FAILURE", exc)


class Timers:
    """What is to be done later waits for the test."""

    def __init__(self):
        self.entries = []

    def __call__(self, seconds, fn):
        self.entries.append((seconds, fn))

    def flush(self):
        entries, self.entries = self.entries, []
        for _, fn in entries:
            fn()

    def close(self):
        self.entries.clear()


class Mender(mender.Mender):
    """A mender whose messages are noted: the mark, the seconds, and the message's other options."""

    def __init__(self, world, state=None):
        self.timers = Timers()
        self.told = []
        super().__init__(None, world.chords, state or (lambda id: "PENDING"), self.timers)

    def _send(self, mark, seconds, **options):
        self.told.append((mark, seconds, options))


class World:
    """A chord of ``size`` members ``t0``, ``t1`` …, as it is in the bucket."""

    def __init__(self, size=2, pool=1):
        self.now = 1_000_000.0
        self.store = MemoryStore(clock=lambda: self.now)
        self.chords = Chords(
            self.store,
            Pool(pool),
            "base/celery-chords/",
            lease=LEASE,
            clock=lambda: self.now,
        )
        ids = tuple(f"t{number}" for number in range(size))
        self.ticket = self.chords.open("g", Manifest(ids, None, b"{}"))
        self.mender = Mender(self)
        self.store.requests.clear()

    def request(self, number):
        """The request of a member's task."""
        body = {"task": "body", "options": {TICKET: self.ticket.dumps()}}
        return SimpleNamespace(id=f"t{number}", chord=body, group_index=number)

    def parts(self):
        """The slots whose part is there."""
        keys = [entry.key for entry in self.store.list("base/celery-chords/g/0/")]
        return sorted(int(key.rpartition("/")[2]) for key in keys)
