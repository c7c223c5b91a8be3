"""How much a listing has shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from .api import Entry

__all__ = ["Extent"]


@dataclass(slots=True)
class Extent:
    """How many objects, their bytes, and when the newest of them was written (1970, where there is none)."""

    count: int = 0
    size: int = 0
    newest: datetime = field(default_factory=lambda: datetime.fromtimestamp(0, UTC))

    def add(self, entry: Entry) -> None:
        """Count one object more."""
        self.count += 1
        self.size += entry.size
        self.newest = max(self.newest, entry.modified)
