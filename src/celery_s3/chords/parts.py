"""What the objects of a chord's tree hold, as bytes: a line of JSON, then what it speaks of.

A *part* is a member's: the ids of the tasks that it added to the chord, then its payload. A *summary* is that of a
complete node: the length of each part (``null``: not carried along), then those parts. What is too large to be carried
along stays in its own object until the body is sent; until then, its :class:`Line` stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from celery_s3.errors import Untrusted

__all__ = [
    "INLINE_BYTES",
    "UNREADABLE",
    "Leaves",
    "Line",
    "line_of",
    "pack_part",
    "pack_summary",
    "parse",
    "unpack_part",
    "unpack_summary",
    "unreadable",
]

#: Parts up to this size travel in the summaries.
INLINE_BYTES = 4 * 1024
#: Stands before what is wrong with a part that cannot be trusted, in the place of its payload: the chord goes on, and
#: fails of it in the end. An error raised while the tree is climbed would leave nobody to decide.
UNREADABLE = b"\x00celery-s3-unreadable\x00"

#: The parts of some members in order; ``None`` where one is too large to be carried along.
Leaves = list[bytes | None]


class Line(bytes):
    """The first line of a member's part whose payload is too large to be carried along."""


def parse(line: bytes) -> Any:
    """What a line says.

    Raises:
        ValueError: it is no JSON, and nothing else whatever the line holds.
    """
    try:
        return json.loads(line)
    except RecursionError as exc:
        raise ValueError("JSON nested too deeply") from exc


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def pack_part(added: Sequence[str], payload: bytes) -> bytes:
    """A member's part.

    Arguments:
        added: the ids of the tasks that the member has added to the chord.
    """
    return _dumps(list(added)) + payload


def unpack_part(part: bytes) -> tuple[list[str], bytes]:
    """The ids and the payload in a member's part.

    Raises:
        ValueError: it is none.
    """
    line, end, payload = part.partition(b"\n")
    ids = parse(line)
    if not (end and isinstance(ids, list) and all(isinstance(id, str) and id for id in ids)):
        raise ValueError("a part begins with a list of task ids")
    return ids, payload


def line_of(part: bytes) -> Line:
    """The part without its payload; empty where its first line has no end."""
    return Line(part[: part.find(b"\n") + 1])


def unreadable(error: Untrusted) -> bytes:
    """The part that stands for one which cannot be trusted."""
    return pack_part((), UNREADABLE + str(error).encode())


def pack_summary(leaves: Sequence[bytes | None]) -> bytes:
    """A summary of the parts of a complete node, in order."""
    return _dumps([None if leaf is None else len(leaf) for leaf in leaves]) + b"".join(leaf or b"" for leaf in leaves)


def unpack_summary(summary: bytes) -> Leaves:
    """The parts in a summary.

    Raises:
        ValueError: it is none.
    """
    line, _, rest = summary.partition(b"\n")
    lengths = parse(line)
    if not (isinstance(lengths, list) and all(one is None or (type(one) is int and one >= 0) for one in lengths)):
        raise ValueError("a summary begins with a list of lengths")
    leaves: Leaves = []
    position = 0
    for length in lengths:
        leaves.append(None if length is None else rest[position : position + length])
        position += length or 0
    if position != len(rest):
        raise ValueError(f"a summary of {len(rest)} bytes says that it has {position}")
    return leaves
