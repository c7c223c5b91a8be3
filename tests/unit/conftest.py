"""A bucket in memory, for backends as for anything else."""

from __future__ import annotations

import pytest

from celery_s3.backends import s3
from celery_s3.bucket import Opened
from celery_s3.store.counting import Tally
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.uploads import MultipartWriter


class Conditional:
    def supported(self) -> bool:
        return True


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """The bucket in memory that every backend of the test opens, whatever its settings."""
    store, pool = MemoryStore(), Pool(4)
    opened = Opened(store, store, MultipartWriter(store, pool), Tally(), Conditional(), pool)
    monkeypatch.setattr(s3, "open_store", lambda settings: opened)
    return store
