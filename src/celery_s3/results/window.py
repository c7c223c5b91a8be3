"""Which members of a group to ask for, and when a look at it has asked enough: pure, without clock or requests.

A member that is asked for in vain costs a GET; one that is asked for too late comes late. Two orders are combined:

* **in order**: tasks finish roughly in the order in which they were sent, so a look goes along the oldest unfinished
  members until some are missing;
* **in turn**: a few of the others, whatever their order. As long as enough of them are there, a look goes on with them:
  what is finished comes at the rate of the reads. Where nothing is there, each member is asked about once while the
  time waited grows tenfold, so that a failure behind tasks that hang is seen.

Why so, and what it costs: ``docs/decisions/waiting.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Window"]

#: The fewest and the most members that a look asks for in vain, in one order, where it finds none.
FEWEST, MOST = 1, 16
#: Of what a look found in order and in turn, a later one may miss one in so many.
IN_ORDER, IN_TURN = 6, 4
#: How many more members a look may miss in turn for each one that it finds there: the first one, which is to find all
#: that was finished before, and the later ones.
FIRST, LATER = 3, 1
#: Of the unfinished members so many are asked in turn while the time waited grows by a factor of e: where the last look
#: found nothing, and where it found some.
STUCK, FLOWING = 0.4, 0.01
#: Seconds waited from which that counts: what ends before is found without.
SETTLED = 0.5


@dataclass(slots=True)
class _Order:
    """One order of asking, in one look.

    Attributes:
        ids: whom to ask next, the last one first.
        width: how many members it may ask for in vain.
        earns: how many more for each that it finds. 0: none, but more requests may be under way while few are missing.
    """

    ids: list[str]
    width: int
    earns: int = 0
    under_way: int = 0
    found: int = 0
    missed: int = 0

    def goes_on(self) -> bool:
        """Whether it may ask on, if all that it has asked and not been answered were in vain."""
        more = self.earns * self.found if self.earns else max(0, self.found - MOST - 4 * self.missed)
        return self.under_way + self.missed < self.width + more


@dataclass(slots=True)
class _Look:
    """The two orders, how many members there are to ask, and in which order each was asked."""

    in_order: _Order
    in_turn: _Order
    members: int
    asked: dict[str, _Order] = field(default_factory=dict)


class Window:
    """The unfinished members of one group.

    Arguments:
        ids: of the members, in the order in which they were sent; the same one twice is one.
        everyone: each look asks for every member.

    Attributes:
        pending: those that were not found yet, in order.
    """

    def __init__(self, ids: Iterable[str], *, everyone: bool = False) -> None:
        self.pending = dict.fromkeys(ids)
        self._everyone = everyone
        self._waited = 0.0
        self._look = self._last = self._begin([], 2, MOST, FIRST)

    def look_again(self, waited: float) -> None:
        """Begin another look.

        Arguments:
            waited: seconds since the first one.
        """
        last, since, self._waited = self._last, waited - self._waited, waited
        share = FLOWING if last.in_order.found or last.in_turn.found else STUCK
        due = round(share * len(self.pending) * since / waited) if waited > SETTLED else 0
        in_order, in_turn = last.in_order.found // IN_ORDER, last.in_turn.found // IN_TURN
        self._look = self._last = self._begin(last.in_turn.ids, min(MOST, in_order), max(in_turn, due), LATER)

    def look_at(self, ids: Sequence[str]) -> None:
        """Ask for these alone, of which there is news; the next look goes on where the last one has ended."""
        self._look = _Look(_Order(list(reversed(ids)), len(ids)), _Order([], 0), len(ids))

    def _begin(self, turn: list[str], in_order: int, in_turn: int, earns: int) -> _Look:
        members = len(self.pending)
        if self._everyone:
            in_order = members
        order = _Order(list(reversed(self.pending)), max(FEWEST, in_order))
        return _Look(order, _Order(turn, max(FEWEST, in_turn), earns), members)

    def next_question(self) -> str | None:
        """The id to ask for next; ``None``: nothing now, perhaps after another answer."""
        look = self._look
        if len(look.asked) == look.members:
            return None
        for order in (look.in_order, look.in_turn):
            if order.goes_on() and (id := self._next(order)) is not None:
                order.under_way += 1
                look.asked[id] = order
                return id
        return None

    def answer(self, id: str, *, found: bool) -> None:
        """What a question came to."""
        order = self._look.asked[id]
        order.under_way -= 1
        if found:
            order.found += 1
            del self.pending[id]
        else:
            order.missed += 1

    def _next(self, order: _Order) -> str | None:
        while order.ids:
            id = order.ids.pop()
            if id in self.pending and id not in self._look.asked:
                return id
        if order is self._look.in_turn:  # the next turn; there is one to ask, see next_question
            order.ids = list(self.pending)
            while (id := order.ids.pop()) in self._look.asked:
                pass
            return id
        return None
