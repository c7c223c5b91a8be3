"""How long everything lives that is stored: seconds after its last write, by the server's Last-Modified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import states

from celery_s3.chords.repair import KEPT
from celery_s3.errors import ConfigurationError
from celery_s3.keys import Kind
from celery_s3.metadata import term_asked
from celery_s3.settings.kinds import Wrong, seconds_of

__all__ = ["DAY", "SLACK", "Terms"]

DAY = 86_400
#: Seconds that a file outlives its term: it was uploaded before the result that points to it was stored, or in a
#: state before that, and AWS dates an upload in parts from its beginning.
SLACK = DAY
#: Part of the names and content types of the serializers that put large messages into the bucket.
_CLAIM_CHECK = "s3+"


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds that each kind lives; ``None``: for ever.

    Attributes:
        results: those that say nothing else, and saved groups.
        failures: results in state FAILURE.
        chords: what a chord that came to no end leaves, after its last sign of life.
        decided: the tombstones of chords that are sent or failed; never for ever.
        messages: large messages, ``None`` where they do not go to the bucket.
    """

    results: float | None
    failures: float | None
    chords: float | None
    decided: float
    messages: float | None

    @classmethod
    def of(cls, conf: Mapping[str, Any], expires: float | str | None) -> Terms:
        """The terms that Celery's configuration sets.

        A broker may redeliver a task for 15 days, so nothing of a chord or a message goes before that.

        Arguments:
            expires: of the backend: `result_expires`, unless its constructor was given another.

        Raises:
            ConfigurationError: one is no length of time.
        """
        results = _seconds("result_expires", expires)
        failures, of_chords = conf.get("result_failure_expires"), conf.get("result_chord_expires")
        chords = results if of_chords is None else _seconds("result_chord_expires", of_chords)
        redelivery = KEPT.total_seconds()
        return cls(
            results=results,
            failures=results if failures is None else _seconds("result_failure_expires", failures),
            chords=chords and max(redelivery, chords),
            decided=max(redelivery, _seconds("result_chord_expires", of_chords) or 0),
            messages=redelivery if _has_claim_check(conf) else None,
        )

    def of_all(self, kind: Kind) -> float | None:
        """The age at which every object of a kind has expired, apart from one that says otherwise itself.

        ``None``: they live for ever; of messages also: there are none.
        """
        term: float | None = getattr(self, kind.term)
        return term

    @property
    def files(self) -> float | None:
        """The age at which files go that have no term of their own."""
        return self.of_file(self.results)

    @property
    def sent(self) -> float | None:
        """The age at which files go that are arguments of calls from no task; ``None``: that of all other files.

        It is needed where results live for ever: no result, and nobody's ``forget()``, removes such a file.
        """
        return self.of_file(KEPT.total_seconds()) if self.results is None else None

    def of_result(self, state: str, request: Any) -> float | None:
        """The term that one result has of its own: its call's, else that of failures; ``None`` where it has none."""
        asked = term_asked(request)
        if asked is None and state == states.FAILURE and self.failures != self.results:
            return self.failures or 0.0
        return asked

    @staticmethod
    def of_file(term: float | None) -> float | None:
        """The age at which a file goes whose result has this term."""
        return None if term is None else term + SLACK

    @property
    def shortest(self) -> float | None:
        """The age from which on a result may have expired, apart from one that says otherwise itself."""
        return min((term for term in (self.results, self.failures) if term is not None), default=None)

    @property
    def longest(self) -> float | None:
        """The age at which every result has expired, apart from one that says otherwise itself."""
        return None if self.results is None or self.failures is None else max(self.results, self.failures)


def _seconds(name: str, value: object) -> float | None:
    """A setting of Celery in seconds; ``None``: for ever, which its 0 means too."""
    try:
        return None if value is None else seconds_of(value) or None
    except Wrong as exc:
        raise ConfigurationError(f"{name} {exc}") from None


def _has_claim_check(conf: Mapping[str, Any]) -> bool:
    names = [conf.get("task_serializer"), *(conf.get("accept_content") or ())]
    return any(_CLAIM_CHECK in str(name) for name in names)
