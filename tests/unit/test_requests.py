"""Requests are values that tell all that a wrapper needs of them."""

from __future__ import annotations

import dataclasses

import pytest

from celery_s3.store import requests
from celery_s3.store.api import PAGE, batches
from celery_s3.store.clients.boto3_client import Boto3Client
from celery_s3.store.clients.obstore_client import ObstoreClient
from celery_s3.store.counting import VERBS
from celery_s3.store.memory import MemoryStore
from celery_s3.store.requests import Put, PutPart, Request
from celery_s3.store.routing import _OF_OBSTORE

KINDS = {one for one in vars(requests).values() if isinstance(one, type) and issubclass(one, Request)} - {Request}


def test_every_request_is_answered():
    """A verb that is added is known to both clients and to the store in memory, before anybody sends it."""
    assert set(Boto3Client._HOW) == set(MemoryStore._HOW) == KINDS
    assert set(ObstoreClient._HOW) == _OF_OBSTORE


def test_every_request_is_public():
    """And to whoever reads the module."""
    assert {kind.__name__ for kind in KINDS} <= set(requests.__all__)


@pytest.mark.parametrize("kind", sorted(KINDS, key=str))
def test_what_a_request_tells(kind):
    """Its verb is one that is counted, and nobody changes it on its way."""
    assert kind.verb in VERBS
    assert kind.operation
    assert kind.action
    assert dataclasses.fields(kind)[0].name == "key"
    assert kind.__dataclass_params__.frozen


def test_no_body_is_shown():
    """Error trackers print the values in a traceback: a body may be a secret, and is too long."""
    assert "secret" not in repr(Put("k", b"secret")) + repr(PutPart("k", "id", 1, b"secret"))


@pytest.mark.parametrize(("count", "lengths"), [(0, []), (1, [1]), (PAGE, [PAGE]), (PAGE + 1, [PAGE, 1])])
def test_batches(count, lengths):
    """No request has more keys than S3 takes, and none has nothing to ask."""
    assert [len(batch) for batch in batches(range(count))] == lengths
