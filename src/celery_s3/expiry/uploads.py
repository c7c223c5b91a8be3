"""Uploads in parts that nobody completes: whoever began them has died, and their parts are billed."""

from __future__ import annotations

from collections.abc import Iterator

from celery_s3.files.pointer import OBJECT
from celery_s3.store.clients.control import Control, Upload

from .terms import DAY, Prefixes

__all__ = ["StaleUploads"]


class StaleUploads:
    """The uploads of ours that are older than a day; lifecycle rules abort them after the same time."""

    def __init__(self, control: Control, prefixes: Prefixes) -> None:
        self._control = control
        self._prefixes = prefixes

    def found(self, now: float) -> Iterator[Upload]:
        """Those that stand there, in a request for each 1,000 uploads.

        Arguments:
            now: the server's time in seconds since the epoch.
        """
        for one in self._control.uploads(self._prefixes.base):
            if self._is_ours(one.key) and one.started.timestamp() < now - DAY:
                yield one

    def _is_ours(self, key: str) -> bool:
        """Only results and files are ever large; what else stands there is somebody else's."""
        results, files = self._prefixes.results, self._prefixes.files
        return key.startswith(results) or (key.startswith(files) and bool(OBJECT.fullmatch(key, len(files))))

    def abort(self, upload: Upload) -> None:
        """Delete its parts; one that has ended meanwhile is no error."""
        self._control.abort(upload)
