"""Who decides about a chord, and what was decided: one object, every version of it with a nonce.

::

    claimed → sent | failed

Only the owner acts: it claims when the values are at hand, and where more than half its lease has passed it renews the
claim before each try to send, or stops if it has lost it by then. A claim that is not decided and older than its
lease may be taken over. A decided claim stays as a tombstone, so that a late duplicate cannot fire again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import uuid4

from celery_s3.errors import Garbled, ObjectMissing, PreconditionFailed
from celery_s3.store.api import CREATE, Match, Object, Precondition, Store
from celery_s3.store.deadline import retried_until

from .parts import parse

__all__ = ["PUBLISHING", "SHORTEST_LEASE", "Claim", "Held", "State", "lease_for"]

#: Seconds.
SHORTEST_LEASE = 30.0
#: The `retry_policy` of a body, whatever its own says: who owns the claim renews it between two calls, not in one.
PUBLISHING = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.2, "interval_max": 0.2}
#: The connections that kombu then tries to make in one call, each up to `broker_connection_timeout`.
TRIES = 4
State = Literal["claimed", "sent", "failed"]
DECIDED: frozenset[State] = frozenset({"sent", "failed"})


def lease_for(conf: Any) -> float:
    """Seconds in which an owner has published for certain, by Celery's configuration: see :data:`TRIES`."""
    attempt = float(conf.broker_connection_timeout or 4) + PUBLISHING["interval_max"]
    # Twice that, since half of the lease may have passed when sending begins: see Claim.holds.
    return max(SHORTEST_LEASE, 2 * TRIES * attempt)


@dataclass(frozen=True, slots=True)
class Held:
    """One version of a claim.

    Attributes:
        owner: who claimed.
        modified: when this was written, on the server's clock.
        lease: seconds after ``modified`` until which its owner may act, as that owner's configuration sets them.
    """

    owner: str
    state: State
    etag: str
    modified: datetime
    lease: float

    @property
    def decided(self) -> bool:
        """Whether the body was sent, or has failed."""
        return self.state in DECIDED


class Claim:
    """The claim of a chord, as one party sees it.

    Arguments:
        key: of the claim.
        lease: seconds after which an undecided claim may be taken over.
        clock: seconds that pass here.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.key = key
        self.lease = lease
        self._clock = clock
        self.owner = uuid4().hex
        self._etag = ""
        self._asked = 0.0

    def read(self) -> Held | None:
        """What stands there, ``None`` where nobody has claimed yet."""
        try:
            found = self.store.get(self.key)
        except ObjectMissing:
            return None
        content = _content(found)
        return Held(content["owner"], content["state"], found.etag, found.modified, float(content["lease"]))

    def acquire(self) -> Held | None:
        """Claim; ``None`` when it is ours, else what stands there."""
        while not self._write("claimed", CREATE):
            held = self.read()
            if held is None:
                continue
            # Our own name may stand there: a try that landed and whose answer was lost.
            return None if held.owner == self.owner and not held.decided and self._resume(held) else held
        return None

    def take_over(self, held: Held) -> bool:
        """Take an expired claim; ``False`` when somebody else did or decided.

        Not tried again where the store fails: its owner may be alive, and wait for the store to note what it did.
        """
        with retried_until(time.monotonic()):
            return self._write("claimed", Match(held.etag))

    def holds(self) -> bool:
        """Right before sending; ``False`` when the claim may be lost: then nothing may be sent.

        It costs a request only after half the lease: until then nobody can have taken the claim over, and nobody
        can for another half, in which to send.
        """
        return self._clock() - self._asked < self.lease / 2 or self._write("claimed", Match(self._etag))

    def mark(self, state: Literal["sent", "failed"]) -> bool:
        """Record the outcome; ``False`` when the claim was lost meanwhile."""
        return self._write(state, Match(self._etag))

    def remaining(self, held: Held, now: datetime) -> float:
        """Seconds until ``held`` expires; ``now`` on the server's clock."""
        return held.lease - (now - held.modified).total_seconds()

    def _resume(self, held: Held) -> bool:
        self._etag = held.etag
        return True

    def _write(self, state: State, precondition: Precondition) -> bool:
        asked = self._clock()
        body = json.dumps({"owner": self.owner, "state": state, "lease": self.lease, "nonce": uuid4().hex})
        try:
            self._etag = self.store.put(
                self.key, body.encode(), precondition=precondition, content_type="application/json"
            )
        except PreconditionFailed:
            return False
        self._asked = asked
        return True


def _content(found: Object) -> dict[str, Any]:
    try:
        content = parse(found.body)
    except ValueError as exc:
        raise Garbled(str(exc), "get", key=found.key) from exc
    known = isinstance(content, dict) and isinstance(content.get("owner"), str) and _is_lease(content.get("lease"))
    if not known or content.get("state") not in get_args(State):
        raise Garbled("a claim has an owner, a state and a lease", "get", key=found.key)
    return dict(content)


def _is_lease(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 10 * 86_400
