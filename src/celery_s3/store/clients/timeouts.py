"""How long a request may take in all, by what the settings say and by the size of its body."""

from __future__ import annotations

from celery_s3.settings import Settings
from celery_s3.store.deadline import slack

__all__ = ["OF_A_PAGE", "SMALL", "brief", "by_size", "long"]

#: Bytes whose way takes no time of its own.
SMALL = 128 * 1024
#: Bytes of what concerns 1,000 objects.
OF_A_PAGE = 512 * 1024
#: Seconds that a body of unknown size may take.
_LONG = 60.0


def brief(settings: Settings) -> float:
    """Seconds for a request with small bodies."""
    return settings.connect_timeout + settings.read_timeout


def long(settings: Settings) -> float:
    """Seconds for one whose answer may be of any size."""
    return max(_LONG, 12 * settings.read_timeout)


def by_size(settings: Settings, size: int, rate: float) -> float:
    """Seconds for a body of ``size`` bytes, on a line that takes ``rate`` of them a second."""
    return brief(settings) + (size / rate * slack() if size > SMALL else 0.0)
