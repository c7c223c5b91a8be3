"""A member's part on its way up the tree."""

from __future__ import annotations

from celery_s3.interruptions import INTERRUPTIONS

from .parts import Leaves
from .ticket import Ticket
from .tree import Parts, Tree

__all__ = ["Delivery"]


class Delivery:
    """A part that is durable, on its way up.

    Attributes:
        ticket: of its chord.
        size: bytes of the part, 0 where another process has written it.
    """

    def __init__(
        self,
        ticket: Ticket,
        tree: Tree,
        slot: int,
        own: bytes | None,
        foreseen: Parts | None = None,
    ) -> None:
        self.ticket = ticket
        self.size = len(own or b"")
        self._tree = tree
        self._slot = slot
        self._own = own
        self._foreseen = foreseen
        self._leaves: Leaves | None = None
        self._done = False

    def climb_quietly(self) -> None:
        """Go up, as far as that can be done while the result is being stored; trouble is left to :meth:`climb`.

        But for an interruption: the result may be waiting for an outage to end, and must not wait on.
        """
        try:
            self._climb()
        except Exception as exc:  # :meth:`climb` meets it again
            if isinstance(exc, INTERRUPTIONS):
                raise

    def climb(self) -> tuple[Tree, Leaves] | None:
        """Go up; the tree and all parts in order if this completed the root."""
        if not self._done:
            self._climb()
        return None if self._leaves is None else (self._tree, self._leaves)

    def completes_its_node(self) -> bool:
        """Whether somebody has to go up; for who does not, as that may take all values into memory."""
        return self._tree.complete(0, self._slot, self._own, self._foreseen) is not None

    def _climb(self) -> None:
        self._leaves = self._tree.climb(0, self._slot, self._own, self._foreseen)
        self._done = True
