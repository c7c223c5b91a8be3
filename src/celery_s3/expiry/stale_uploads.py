"""Uploads in parts that nobody completes: whoever began them has died, and their parts are billed."""

from __future__ import annotations

from collections.abc import Iterator

from celery_s3.keys import Layout
from celery_s3.store.clients.control import Control, Upload

from .terms import DAY

__all__ = ["StaleUploads"]


class StaleUploads:
    """Finds and aborts our uploads that are older than a day; lifecycle rules abort them after the same time."""

    def __init__(self, control: Control, layout: Layout) -> None:
        self._control = control
        self._layout = layout

    def stale(self, now: float) -> Iterator[Upload]:
        """The uploads that were begun more than a day ago, in one request for each 1,000 of all.

        Arguments:
            now: the server's time in seconds since the epoch.
        """
        for one in self._control.uploads(self._layout.base):
            if self._may_be_large(one.key) and one.started.timestamp() < now - DAY:
                yield one

    def _may_be_large(self, key: str) -> bool:
        """Whether this package uploads objects under such a key in parts: any other upload is somebody else's."""
        found = self._layout.parse(key)
        return found is not None and bool(found.kind.large)

    def abort(self, upload: Upload) -> None:
        """Delete its parts; one that has ended meanwhile is no error."""
        self._control.abort(upload)
