"""What a header task needs to know of its chord; it travels in the options of the body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["TICKET", "Ticket", "redelivered"]

#: The key in the options of a chord's body under which the ticket travels to every header task.
TICKET = "celery_s3"


def redelivered(request: Any) -> bool:
    """Whether the broker has delivered a request's message before: what it asks for may have been done."""
    return bool((getattr(request, "delivery_info", None) or {}).get("redelivered"))


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a header task needs to know of its chord.

    Attributes:
        group: the group id of the chord's header.
        size: how many members the header has; 0 where it was not known yet when the task was sent.
        flat: Celery's group index is the member's slot; else the manifest tells it.
        nonce: of the manifest.
        slot: of the member that added this task or one of its adders; ``None`` in the header itself.
        via: the ids of the tasks that added, from that member down. A task that adds others puts itself there,
            so where its own id is the last one, those before are its adders.
        added: the ids of the tasks that the last of ``via`` added.
        prefix: of the chord's keys, as whoever applied it has it.
        again: the task that applied the chord was delivered again: its body may have been sent.
    """

    group: str
    size: int = 0
    flat: bool = False
    nonce: str = ""
    slot: int | None = None
    via: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    prefix: str = ""
    again: bool = False

    @classmethod
    def of(cls, request: Any) -> Ticket | None:
        """The ticket of a task's request; ``None`` where the task is no member of a chord that we run."""
        body = getattr(request, "chord", None)
        if not isinstance(body, dict):
            return None
        options = body.get("options")
        return cls.in_body(body) if options and options.get(TICKET) else None

    @classmethod
    def in_body(cls, body: Mapping[str, Any]) -> Ticket:
        """The ticket that a body's signature has."""
        return cls.loads(body["options"][TICKET])

    def dumps(self) -> dict[str, Any]:
        """The ticket as JSON and pickle take it, without what is empty."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value or (name == "slot" and value is not None)}

    @classmethod
    def loads(cls, options: Mapping[str, Any]) -> Ticket:
        """The ticket that :meth:`dumps` has made; what a later version adds to it is left out."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
            if name in cls.__slots__
        }
        return cls(**known)

    def was_added(self, task_id: str) -> bool:
        """Whether the task is none of the header, but was added by one."""
        return bool(self.via) and self.via != (task_id,)

    def added_by(self, task_id: str) -> tuple[str, ...]:
        """The ids of the tasks that the task has added."""
        return self.added if self.via[-1:] == (task_id,) else ()

    def adding(self, task_id: str, slot: int, ids: Iterable[str]) -> Ticket:
        """The ticket after the task, under that slot, has added others."""
        via = self.via if self.via[-1:] == (task_id,) else (*self.via, task_id)
        return replace(self, slot=slot, via=via, added=(*self.added_by(task_id), *ids))
