"""The fan-in tree of a chord: which part belongs where, and how its parts are looked at.

Level 0 has one slot for each member of the header. 32 neighbouring slots are a node; a complete node is
summed up in one part of the next level, until a level fits in one node, the root::

    level 0   0 … 31   32 … 63   …   992 … 999
    level 1      0        1      …      31           the root's node

Pure arithmetic, and the reading and writing of parts; who decides stands in ``claim.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from celery_s3.errors import Garbled, ObjectMissing, PreconditionFailed, StoreError, Untrusted
from celery_s3.keys import encode_segment
from celery_s3.store.api import CREATE, Store
from celery_s3.store.deadline import patient
from celery_s3.store.parallel import Pool

from .parts import (
    INLINE_BYTES,
    UNREADABLE,
    Leaves,
    Line,
    is_failure,
    line_of,
    pack_part,
    pack_summary,
    unpack_part,
    unpack_summary,
    unreadable,
)

__all__ = ["FAN_IN", "OPEN", "Memory", "Parts", "Shape", "Tree"]

FAN_IN = 32
#: The size of a header that is still being generated: more than it will have.
OPEN = FAN_IN**6
#: Members that run at the same time end in nearly the order of their slots: who delivers one of the last so many slots
#: of a node may well be the last one.
LAST_SLOTS = 2

#: Parts of one node by slot; those of added tasks by id.
Parts = dict[Any, bytes]
#: Bytes that an object in memory takes beside its content.
_OVERHEAD = 200


@dataclass(frozen=True)
class Shape:
    """The tree of a header of ``size`` members."""

    size: int

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of slots of each level."""
        counts = [self.size]
        while counts[-1] > FAN_IN:
            counts.append(-(-counts[-1] // FAN_IN))
        return tuple(counts)

    @property
    def top(self) -> int:
        """The level whose one node is the root."""
        return len(self.counts) - 1

    def node(self, level: int, slot: int) -> range:
        """The slots of the node that ``slot`` belongs to."""
        first = slot // FAN_IN * FAN_IN
        return range(first, min(first + FAN_IN, self.counts[level]))

    def leaves(self, level: int, slot: int) -> range:
        """The members under a slot."""
        width = FAN_IN**level
        return range(slot * width, min((slot + 1) * width, self.size))


def _light(part: bytes) -> bytes:
    """The part as it is kept in memory: of one over :data:`INLINE_BYTES`, its first line alone."""
    return part if len(part) <= INLINE_BYTES else line_of(part)


def _small(parts: Parts) -> Parts:
    return {one: part for one, part in parts.items() if len(part) <= INLINE_BYTES}


def _kept(level: int, parts: Parts) -> Parts:
    """These parts of a level as they are kept in memory."""
    return _small(parts) if level else {one: _light(part) for one, part in parts.items()}


class Memory:
    """What the threads of a process share: the parts that they have written or seen lately, and who looks at a node.

    A part never changes, so a process reads it once. Of a part over :data:`INLINE_BYTES` only the first line is kept,
    which tells that it is there.

    Members that end at the same moment look at the same nodes. So one thread of a process looks, and whoever comes
    meanwhile leaves that to it: its part is written, and the next look, which begins after that, counts for it as well.

    Arguments:
        limit: bytes, roughly.
    """

    def __init__(self, limit: int = 8 * 1024 * 1024) -> None:
        self._limit = limit
        self._size = 0
        self._nodes: dict[str, Parts] = {}
        self._lock = threading.Lock()
        #: What a thread is at, and whether another one has come since it looked last.
        self._busy: dict[str, bool] = {}

    def node(self, name: str) -> Parts:
        """The known parts of a node by slot."""
        with self._lock:
            return dict(self._nodes.get(name, {}))

    def remember(self, name: str, parts: Parts) -> None:
        """Add to what is known of a node; what was touched longest ago makes room."""
        with self._lock:
            known = self._nodes.pop(name, {})
            self._size += _weight(parts) - _weight({slot: known[slot] for slot in parts if slot in known})
            known.update(parts)
            self._nodes[name] = known
            while self._size > self._limit and len(self._nodes) > 1:
                self._size -= _weight(self._nodes.pop(next(iter(self._nodes))))

    def begin(self, name: str) -> bool:
        """Whether this thread may be at it; ``False``: another one is, and is told that this one has come."""
        with self._lock:
            if name in self._busy:
                self._busy[name] = True
                return False
            self._busy[name] = False
            return True

    def end(self, name: str, *, anyway: bool = False) -> bool:
        """This thread is not at it any more; ``False``, where another one has come since: it is, and must look again.

        Arguments:
            anyway: whoever has come needs no other look.
        """
        with self._lock:
            if self._busy[name] and not anyway:
                self._busy[name] = False
                return False
            del self._busy[name]
            return True

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Whether no other thread is at it; none may be until the end of this."""
        mine = self.begin(name)
        try:
            yield mine
        finally:
            if mine:
                self.end(name, anyway=True)


def _weight(parts: Parts) -> int:
    return sum(len(part) + _OVERHEAD for part in parts.values())


class Tree:
    """The parts of a chord.

    Arguments:
        folder: the prefix of the chord's keys.
        nonce: tells this chord from an earlier one with the same keys, which ``memory`` may know.
        size: of a header that may still be being generated (``shape`` is that of :data:`OPEN` members): asks for its
            size, 0 if it is not known yet.

    Attributes:
        name: tells this chord from all others.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        shape: Shape,
        folder: str,
        memory: Memory,
        *,
        nonce: str = "",
        size: Callable[[], int] | None = None,
    ) -> None:
        self.store = store
        self.pool = pool
        self.shape = shape
        self.folder = folder
        self.memory = memory
        self.name = f"{folder}@{nonce}"
        self._nonce = nonce
        self._size = size

    def key(self, level: int, slot: int) -> str:
        """The key of a part."""
        return f"{self.folder}{level}/{slot}"

    def _name(self, level: int, node: range) -> str:
        return f"{self.key(level, node.start)}@{self._nonce}"

    def added_key(self, task_id: str) -> str:
        """The key of the part of a task that a member added to the chord."""
        return f"{self.folder}added/{encode_segment(task_id)}"

    def put(self, key: str, body: bytes) -> bool:
        """Create a part; ``False`` where one stands there: the first one counts."""
        try:
            self.store.put(key, body, precondition=CREATE)
        except PreconditionFailed:
            return False
        return True

    def add(self, level: int, slot: int, part: bytes) -> tuple[bool, Parts | None]:
        """Create a part, and read the others of its node at the same time where it is likely to be the last one.

        They are read where the part is likely to be the node's last one: that saves a round trip. A part never
        changes, so what was there before one's own part was need not be asked for again. What cannot be read now is
        read later: it is no reason not to deliver.
        """
        key = self.key(level, slot)
        others = self._foreseeable(level, slot)
        if not others:
            return self.put(key, part), None
        created, foreseen = self.pool.run_both(lambda: self.put(key, part), lambda: self._foresee(level, others))
        return created, foreseen

    def _foresee(self, level: int, others: list[int]) -> Parts | None:
        try:
            with patient(0):
                return self._read(level, others)
        except StoreError:
            return None

    def _foreseeable(self, level: int, slot: int) -> list[int]:
        """What to read in advance: nothing, unless the slot is among its node's last."""
        node = self.shape.node(level, slot)
        name = self._name(level, node)
        known = self.memory.node(name)
        if slot < node.stop - LAST_SLOTS:
            return []
        if level == 0 and len(known) < len(node) // 4:
            # This process has seen few of the node's parts, so other processes deliver the rest: each of them would
            # read all the parts that the others read.
            return []
        return [one for one in node if one != slot and one not in known]

    def get(self, key: str) -> bytes | None:
        """A member's part, ``None`` where there is none."""
        return self._checked(key, unpack_part)

    def _checked(self, key: str, check: Callable[[bytes], object], length: int | None = None) -> bytes | None:
        """An object that may be a part; what cannot be one stands in the tree as such, and fails the chord."""
        try:
            found = self.store.get(key, length=length)
            body = found.body if found.complete else line_of(found.body)
            if found.complete or body:
                check(body)
        except ObjectMissing:
            return None
        except Untrusted as exc:
            return unreadable(exc)
        except ValueError as exc:
            return unreadable(Garbled(str(exc), "get", key=key))
        return body

    def get_all(self, keys: Iterable[str]) -> list[bytes | None]:
        """The parts under these keys, read at the same time."""
        return self.pool.map(self.get, keys)

    def _peek(self, key: str) -> bytes | None:
        """A member's part; of a large one only its line, the value is read when the body is about to be sent."""
        part = self._checked(key, unpack_part, INLINE_BYTES + 1)
        if part != b"":
            return part
        whole = self.get(key)  # its line is longer than that
        return whole if whole is None or len(whole) <= INLINE_BYTES else line_of(whole)

    def _summary(self, key: str) -> bytes | None:
        return self._checked(key, unpack_summary)

    def _read(self, level: int, slots: Iterable[int]) -> Parts:
        """Those of these parts that are there, read at the same time."""
        wanted = list(slots)
        read = self._summary if level else self._peek
        found = self.pool.map(lambda slot: read(self.key(level, slot)), wanted)
        return {slot: part for slot, part in zip(wanted, found, strict=True) if part is not None}

    def read_node(self, level: int, slot: int, own: bytes | None, foreseen: Parts | None = None) -> list[bytes] | None:
        """The parts of the slot's node in order, ``None`` where one is missing.

        The highest slot is the one most likely to be missing, so it is asked for first, alone; then 2, 4, 8 … at the
        same time, until one is missing.

        Arguments:
            own: the slot's part; ``None``: another process wrote it, and it must be read as well.
            foreseen: parts that were read already, see :meth:`add`.
        """
        node = self.shape.node(level, slot)
        name = self._name(level, node)
        parts = {**self.memory.node(name), **(foreseen or {})}
        if own is not None:
            parts[slot] = own
        wanted = iter([one for one in reversed(node) if one not in parts])
        ahead = 1
        while batch := list(islice(wanted, ahead)):
            parts |= self._read(level, batch)
            if any(one not in parts for one in batch):
                break
            ahead *= 2
        self.memory.remember(name, _kept(level, parts))
        if any(one not in parts for one in node):
            return None
        in_order = [parts[one] for one in node]
        return None if level == 0 and self.added(in_order) is None else in_order

    def complete(self, level: int, slot: int, own: bytes | None, foreseen: Parts | None = None) -> list[bytes] | None:
        """As :meth:`read_node`, of a node that may be the last one of a header that is being generated.

        A node of 32 members is complete however many may follow. Else the size is asked for, after the parts were
        written and read: where one is missing, and of 32 summaries, of which the last may be of fewer members. Who
        writes into the last node of a level before the size is known leaves that to the header's last task, which
        belongs to each of them and is sent once it is.
        """
        parts = self.read_node(level, slot, own, foreseen)
        if (parts is None or level) and self._size is not None and (size := self._size()):
            self._size, self.shape = None, Shape(size)
            return self.read_node(level, slot, own) if level <= self.shape.top else None
        return parts

    def added(self, parts: Iterable[bytes]) -> dict[str, bytes] | None:
        """The parts of all tasks that these members added, and those added in turn; ``None`` if one is missing."""
        found: dict[str, bytes] = {}
        wanted = [id for part in parts for id in unpack_part(part)[0]]
        while wanted:
            new = self._added(wanted)
            if len(new) < len(set(wanted)):
                return None
            found |= new
            wanted = [id for part in new.values() for id in unpack_part(part)[0] if id not in found]
        return found

    def _added(self, ids: Iterable[str]) -> dict[str, bytes]:
        """Those of these added tasks' parts that are there."""
        name = f"{self.folder}added@{self._nonce}"
        known = self.memory.node(name)
        parts = {id: known[id] for id in ids if id in known}
        wanted = [id for id in dict.fromkeys(ids) if id not in parts]
        read = self.get_all(self.added_key(id) for id in wanted)
        parts |= {id: part for id, part in zip(wanted, read, strict=True) if part is not None}
        if parts:
            self.memory.remember(name, _small(parts))
        return parts

    def climb(self, level: int, slot: int, own: bytes | None, foreseen: Parts | None = None) -> Leaves | None:
        """Go up as long as nodes are complete.

        Returns:
            All members' parts in order once the root is complete, else ``None``: somebody else goes on.
        """
        busy: list[str] = []
        leaves: Leaves = []
        try:
            while True:
                name = self._name(level, self.shape.node(level, slot))
                if own is not None:
                    self.memory.remember(name, _kept(level, {slot: own}))
                if not self.memory.begin(name):
                    return None
                busy.append(name)
                parts = self.complete(level, slot, own, foreseen)
                while parts is None:
                    if level > self.shape.top:  # the header has ended with the node below: it was the root
                        return leaves
                    if self.memory.end(busy[-1]):
                        busy.pop()
                        return None
                    parts = self.complete(level, slot, own)
                leaves = self._leaves(level, slot, parts)
                if level == self.shape.top:
                    return leaves
                level, slot = level + 1, slot // FAN_IN
                own = pack_summary([leaf if leaf is None or len(leaf) <= INLINE_BYTES else None for leaf in leaves])
                # Whoever completes the node writes the same bytes: that another one was first changes nothing.
                _, foreseen = self.add(level, slot, own)
        finally:
            for name in busy:
                self.memory.end(name, anyway=True)  # they are complete, or this thread comes again

    def _leaves(self, level: int, slot: int, parts: list[bytes]) -> Leaves:
        if level == 0:
            return [None if isinstance(part, Line) else part for part in parts]
        summaries = zip(self.shape.node(level, slot), parts, strict=True)
        return [leaf for one, part in summaries for leaf in self._summed_up(level, one, part)]

    def _summed_up(self, level: int, slot: int, summary: bytes) -> Leaves:
        if UNREADABLE in summary[: len(pack_part((), UNREADABLE, failed=True))]:
            return [summary] * len(self.shape.leaves(level, slot))
        leaves, members = unpack_summary(summary), self.shape.leaves(level, slot)
        try:
            if len(leaves) != len(members):
                raise ValueError(f"it has {len(leaves)} parts of {len(members)}")
            for leaf in leaves:
                if leaf is not None:
                    unpack_part(leaf)
        except ValueError as exc:
            return [unreadable(Garbled(str(exc), "get", key=self.key(level, slot)))] * len(members)
        return leaves

    def stands(self) -> bool:
        """Whether the parts of a complete tree are there still: asked of the store, whatever is remembered."""
        try:
            self.store.get(self.key(0, 0), length=1)
        except ObjectMissing:
            return False
        except Untrusted:
            pass  # it is there
        return True

    def payloads(self, leaves: Leaves) -> list[list[bytes]] | None:
        """Per member its payload and those of the tasks that it added; ``None`` where a part is gone by now.

        Of a chord that can only fail, the first failure that is at hand, alone: no values are read for it.
        """
        failure = next((leaf for leaf in leaves if leaf is not None and is_failure(leaf)), None)
        if failure is not None:
            return [[unpack_part(failure)[1]]]
        missing = [index for index, leaf in enumerate(leaves) if leaf is None]
        found = self.get_all(self.key(0, index) for index in missing)
        for index, part in zip(missing, found, strict=True):
            leaves[index] = part
        parts = [leaf for leaf in leaves if leaf is not None]
        added = self.added(parts) if len(parts) == len(leaves) else None
        if added is None:
            return None
        return [list(_with_added(part, added)) for part in parts]

    def keys(self, leaves: Leaves) -> Iterator[str]:
        """The keys of all parts."""
        for level, count in enumerate(self.shape.counts):
            yield from (self.key(level, slot) for slot in range(count))
        if self.shape.size == FAN_IN ** (self.shape.top + 1):
            yield self.key(self.shape.top + 1, 0)  # of a full root, by who did not know yet that no more would come
        yield from (self.added_key(id) for id in self.added(leaf for leaf in leaves if leaf is not None) or ())


def _with_added(part: bytes, added: dict[str, bytes]) -> Iterator[bytes]:
    """The payload of a part and of what was added to it, each added task's behind that of the one that added it."""
    seen: set[str] = set()
    left = [part]
    while left:
        ids, payload = unpack_part(left.pop())
        yield payload
        new = [id for id in dict.fromkeys(ids) if id not in seen]
        seen.update(new)
        left += [added[id] for id in reversed(new)]
