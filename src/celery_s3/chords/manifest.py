"""What a chord is: written once, before its header is published, so that anybody can repair it later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from celery.result import ResultBase, ResultSet

from .parts import parse

__all__ = ["Manifest", "Nesting", "arrange", "leaf_ids", "nesting"]

#: How the members' values are nested in the list that the body gets: the number of a leaf, or a list.
Nesting: TypeAlias = "int | list[Nesting]"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One chord.

    Attributes:
        ids: the task ids of the leaves of the header, in order; none while the header is being generated.
        nesting: ``None`` where the values are a plain list.
        body: the body's signature in the app's `task_serializer`.
        root: the root of the task that applied the chord, which its header inherits; ``None`` where none did.
        nonce: tells this chord from an earlier one with the same group id, of which nothing is left in the bucket.
    """

    ids: tuple[str, ...]
    nesting: list[Nesting] | None
    body: bytes
    root: str | None = None
    nonce: str = ""

    @property
    def flat(self) -> bool:
        """Whether Celery's group indexes number the members without gap or repetition."""
        return self.nesting is None

    @property
    def open(self) -> bool:
        """Whether the header's tasks are still being generated: its size is not known."""
        return not self.ids

    def dumps(self) -> bytes:
        """A line of JSON, then the body."""
        names = ("ids", "nesting", "root", "nonce")
        head = {name: getattr(self, name) for name in names}
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + self.body

    @classmethod
    def loads(cls, text: bytes) -> Manifest:
        """The manifest in an object.

        Raises:
            ValueError: it is none.
        """
        line, _, body = text.partition(b"\n")
        head = parse(line)
        if not isinstance(head, dict) or not isinstance(head.get("ids"), list):
            raise ValueError("a manifest begins with ids and nesting")  # noqa: TRY004 (its content is wrong)
        ids, nesting, root = tuple(head["ids"]), head.get("nesting"), head.get("root")
        nonce = head.get("nonce", "")
        strings = ("" if root is None else root, nonce, *ids)
        if not (all(ids) and all(isinstance(one, str) for one in strings) and _nests(nesting, len(ids))):
            raise ValueError("the manifest's ids or nesting are none")
        return cls(ids, nesting, body, root, nonce)


def _nests(nesting: Any, size: int, depth: int = 100) -> bool:
    """Whether this is a nesting of ``size`` leaves, ``depth`` lists deep at most."""
    if nesting is None:
        return True
    if not isinstance(nesting, list) or not depth:
        return False
    return all(
        0 <= one < size if type(one) is int else one is not None and _nests(one, size, depth - 1) for one in nesting
    )


def leaf_ids(results: Iterable[ResultBase]) -> tuple[str, ...]:
    """The ids of the leaves in order: a group counts with its members, a task that occurs twice counts once."""
    return tuple(dict.fromkeys(_leaves(results)))


def _leaves(results: Iterable[ResultBase]) -> Iterator[str]:
    for result in results:
        if isinstance(result, ResultSet):
            yield from _leaves(result.results)
        else:
            yield result.id


def nesting(results: list[ResultBase]) -> list[Nesting] | None:
    """How the leaves are nested in the header; ``None`` where each member is one leaf, and none occurs twice."""
    numbers = {id: number for number, id in enumerate(leaf_ids(results))}

    def nested(results: list[ResultBase]) -> list[Nesting]:
        return [nested(one.results) if isinstance(one, ResultSet) else numbers[one.id] for one in results]

    plain = len(numbers) == len(results) and not any(isinstance(one, ResultSet) for one in results)
    return None if plain else nested(results)


def arrange(values: list[list[Any]], nesting: list[Nesting] | None) -> list[Any]:
    """The values as the body gets them; those of added tasks stand behind the value of the task that added them."""
    arranged: list[Any] = []
    for one in range(len(values)) if nesting is None else nesting:
        if isinstance(one, int):
            arranged.extend(values[one])
        else:
            arranged.append(arrange(values, one))
    return arranged
