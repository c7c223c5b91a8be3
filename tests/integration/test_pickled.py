"""Results that were pickled, as for a pool of processes, are read in the bucket that they are from."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

from celery import Celery

from celery_s3.backends import S3Backend


def in_a_thread(fn, *args):
    """What a call returns in a thread of its own, where no app is current but the process' default."""
    found = []
    thread = threading.Thread(target=lambda: found.append(fn(*args)))
    thread.start()
    thread.join()
    return found[0]


def test_where_another_app_is_current(make_app, seaweed, fresh_bucket, stored):
    """Wherever in its process it is unpickled, a result has its own backend, and no other app's."""
    app = make_app(seaweed)
    other = Celery("other", broker="memory://", backend="celery-s3://another-bucket/?region=us-east-1")
    try:
        again = in_a_thread(pickle.loads, pickle.dumps(stored(app, 7)))
        assert again.backend is app.backend
        assert again.get(timeout=10) == 7
    finally:
        other.close()


def read(packed):
    """In another process: the values of results, and how many backends they have."""
    results = [pickle.loads(each) for each in packed]
    return [result.get(timeout=10) for result in results], len({id(result.backend) for result in results})


def test_in_a_process_without_the_app(make_app, seaweed, stored, monkeypatch):
    """Settings travel, credentials are found there, and all results of equal settings share one backend."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    app = make_app(seaweed, result_serializer="yaml", result_accept_content=["yaml"])
    packed = [pickle.dumps(stored(app, {"n": n})) for n in range(5)]
    assert not [text for text in packed if seaweed.secret_key.encode() in text or seaweed.access_key.encode() in text]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        values, backends = pool.submit(read, packed).result(timeout=60)
    assert values == [{"n": n} for n in range(5)]
    assert backends == 1


def test_secrets_stay():
    """Of a key only where it is may travel, of a proxy nothing that has a password in it."""
    app = Celery("proj", set_as_current=False, broker="memory://", backend="celery-s3://bucket/p?region=us-east-1")
    key = "A" * 43 + "="
    app.conf.s3_backend_settings = {
        "seal_keys": [key],
        "proxies": {"http": "http://me:hush@proxy:3128"},
        "aws_access_key_id": "AKIDOFTHETEST",
        "aws_secret_access_key": "never",
        "max_retries": 7,
    }
    packed = pickle.dumps(app.backend)
    assert not [secret for secret in (key, "hush", "AKIDOFTHETEST", "never") if secret.encode() in packed]
    assert b"max_retries" in packed
    assert isinstance(pickle.loads(packed), S3Backend)
    app.close()
