"""Chords as a fan-in tree of objects.

What is in which module::

    ticket      what a header task needs to know of its chord
    manifest    what a chord is, written before its header is published
    parts       the bytes of what members deliver, and of summaries
    tree        where parts are, and the way up
    delivery    one part on its way up
    claim       who decides, and what was decided
    service     the chords under a prefix: opening, delivering
    decision    one party's way from the claim to the mark
    timer       what is to be done later
    survey      chords as they are found in the bucket
    repair      mending those that nobody goes on with

    producer    Celery's hooks of whoever applies a chord
    members     those of the header's tasks
    sender      who sends the body, or makes its failure known
    body        the signature of a body: what it begins and ends with
    mending     who mends, and when
"""

from .decision import Decision, Outcome, follow
from .manifest import Manifest, arrange, leaf_ids, nesting
from .service import Chords
from .ticket import Ticket
from .timer import Timer

__all__ = ["Chords", "Decision", "Manifest", "Outcome", "Ticket", "Timer", "arrange", "follow", "leaf_ids", "nesting"]
