"""Whether the broker tells who waits."""

from __future__ import annotations

from uuid import uuid4

from .case import Case
from .findings import Finding, ok, warn

__all__ = ["notices"]

#: Seconds that a notice may take.
_WITHIN = 5.0
_NAMES = {"redis": "Redis", "amqp": "RabbitMQ", "sqs": "SQS"}
_REMEDIES = {
    "redis": " Let the user have the channels (`&*` in its ACL).",
    "sqs": " Allow what `celery s3 policy` says of queues.",
}


def notices(case: Case) -> Finding:
    """One notice, sent and heard by this process."""
    if case.settings.notices == "off":
        return ok("none, as `notices` says: results are polled for")
    if case.notices is None or not case.notices.kind:
        return ok("none: results are polled for; Redis and RabbitMQ could tell, and SQS with `notices` `on`")
    name = _NAMES[case.notices.kind]
    seconds = case.notices.round_trip(f"doctor-{uuid4()}", _WITHIN)
    if seconds is None:
        return warn(
            f"none has come over {name} within {_WITHIN:.0f} s: results are polled for",
            f"Let this machine reach the broker.{_REMEDIES.get(case.notices.kind, '')}",
        )
    return ok(f"one has come over {name} after {seconds * 1000:.1f} ms")
