"""What the objects of a chord's tree hold, as bytes: a line of JSON, then what it speaks of.

A *part* is a member's: the ids of the tasks that it added to the chord, and whether it failed, then its payload. A
*summary* is that of a complete node: the length of each part (``null``: not carried along), then those parts. What is
too large to be carried along stays in its own object until the body is sent; until then, its :class:`Line` stands for
it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from celery_s3.errors import Untrusted

__all__ = [
    "CALLED",
    "INLINE_BYTES",
    "UNREADABLE",
    "Leaves",
    "Line",
    "is_failure",
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
#: In the place of the payload of a part that cannot be trusted: this, and the text of the error. The chord goes on with
#: it and fails in the end; an error raised by whoever reads the part would leave nobody to decide the chord.
UNREADABLE = b"\x00celery-s3-unreadable\x00"

#: The attribute of a request that has the marks of the errbacks which the task's failure has called; they stand behind
#: its value.
CALLED = "celery_s3_called"

#: The parts of some members in order; ``None`` where one is too large to be carried along.
Leaves = list[bytes | None]


class Line(bytes):
    """The first line of a member's part whose payload is too large to be carried along."""


def parse(line: bytes) -> Any:
    """The JSON value in a line.

    Raises:
        ValueError: it is no JSON, or nested too deeply for Python's parser; no other error, whatever it holds.
    """
    try:
        return json.loads(line)
    except RecursionError as exc:
        raise ValueError("JSON nested too deeply") from exc


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def pack_part(added: Sequence[str], payload: bytes, *, failed: bool = False) -> bytes:
    """A member's part.

    Arguments:
        added: the ids of the tasks that the member has added to the chord.
        failed: the payload is a failure, with which the chord fails: :func:`is_failure` tells without decoding it.
    """
    return _dumps({"failed": list(added)} if failed else list(added)) + payload


def is_failure(part: bytes) -> bool:
    """Whether a part says that its member has failed, or cannot be trusted."""
    return part.startswith(b'{"failed":')


def unpack_part(part: bytes) -> tuple[list[str], bytes]:
    """The ids and the payload in a member's part.

    Raises:
        ValueError: it is none.
    """
    line, end, payload = part.partition(b"\n")
    head = parse(line)
    ids = head.get("failed") if isinstance(head, dict) else head
    if not (end and isinstance(ids, list) and all(isinstance(id, str) and id for id in ids)):
        raise ValueError("a part begins with a list of task ids")
    return ids, payload


def line_of(part: bytes) -> Line:
    """The part without its payload; empty where its first line has no end."""
    return Line(part[: part.find(b"\n") + 1])


def unreadable(error: Untrusted) -> bytes:
    """The part that stands for one which cannot be trusted."""
    return pack_part((), UNREADABLE + str(error).encode(), failed=True)


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
