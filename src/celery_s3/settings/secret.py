"""A value that nobody may print."""

from __future__ import annotations

__all__ = ["MASK", "Secret"]

MASK = "********"


class Secret:
    """A value that masks itself wherever it is printed.

    Attributes:
        file: the path of the file that it was read from, empty where it was none.
    """

    __slots__ = ("_value", "file")

    def __init__(self, value: str, file: str = "") -> None:
        self._value = value
        self.file = file

    def reveal(self) -> str:
        """The value itself, to be kept out of locals of what may raise: error trackers show those."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)
