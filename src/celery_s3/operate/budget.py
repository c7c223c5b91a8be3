"""What a query has cost so far, and asking before it costs too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from celery_s3.store.counting import Tally, difference, requests_in

__all__ = ["FREE", "Budget"]

#: Requests that a query makes without asking.
FREE = 1000


class Budget:
    """Asks once before a query makes more than :data:`FREE` requests.

    Arguments:
        tally: what the store counts in.
        ask: told the requests by verb so far, those under way too, and the share of the listing that they have covered
            (0 to 1), ``None`` where that cannot be told; whatever it raises ends the query.
    """

    def __init__(self, tally: Tally, ask: Callable[[Counter[str], float | None], object]) -> None:
        self._tally = tally
        self._before = tally.snapshot()
        self._ask = ask
        self._asked = False
        # The tally counts a request once it is made, which is too late to ask where many are under way at once.
        self._reserved: Counter[str] = Counter()
        #: the id that the listing has come to
        self.position = ""

    @property
    def spent(self) -> Counter[str]:
        """The requests that were made so far, by verb, retries included."""
        return requests_in(difference(self._tally.snapshot(), self._before))

    def reserve(self, verb: str) -> None:
        """Ask, if the request that is about to be made is one too many.

        Raises:
            Whatever ``ask`` raises.
        """
        if not self._asked and self._reserved.total() >= FREE:
            self._asked = True
            self._ask(self._reserved, _share(self.position))
        self._reserved[verb] += 1

    def agreed(self) -> None:
        """Do not ask: whoever runs the query was asked already."""
        self._asked = True


def _share(id: str) -> float | None:
    """How far through the alphabet an id is: Celery's are random hexadecimal numbers. ``None`` for another id."""
    try:
        return int(id[:6], 16) / 16**6 if len(id) == 36 and id.count("-") == 4 else None
    except ValueError:
        return None
