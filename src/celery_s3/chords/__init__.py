"""Chords as a fan-in tree of objects."""

from .manifest import Manifest, arrange, leaf_ids, nesting
from .service import Chords, Delivery, Outcome, Ticket
from .timer import Agenda

__all__ = ["Agenda", "Chords", "Delivery", "Manifest", "Outcome", "Ticket", "arrange", "leaf_ids", "nesting"]
