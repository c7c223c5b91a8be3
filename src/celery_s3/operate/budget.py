"""What a query has cost so far, and asking before it costs too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

__all__ = ["FREE", "Toll"]

#: Requests that a query makes without asking.
FREE = 1000


class Toll:
    """Counts the requests of a query, and asks once before there are more than :data:`FREE`.

    Arguments:
        ask: told the requests by verb so far, and the share of the listing that they have covered, where that can
            be told; whatever it raises ends the query.
    """

    def __init__(self, ask: Callable[[Counter[str], float | None], object]) -> None:
        self.spent: Counter[str] = Counter()
        #: the id that the listing has come to
        self.position = ""
        self._ask = ask
        self._asked = False

    def pay(self, verb: str) -> None:
        """Count one request that is about to be made."""
        self.check()
        self.spent[verb] += 1

    def check(self) -> None:
        """Ask, if the next request is one too many."""
        if not self._asked and self.spent.total() >= FREE:
            self._asked = True
            self._ask(self.spent, _share(self.position))

    def agreed(self) -> None:
        """Somebody was asked already."""
        self._asked = True


def _share(id: str) -> float | None:
    """How far through the alphabet an id is: Celery's are random hexadecimal numbers. ``None`` for another id."""
    try:
        return int(id[:6], 16) / 16**6 if len(id) == 36 and id.count("-") == 4 else None
    except ValueError:
        return None
