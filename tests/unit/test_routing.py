"""Each call goes to the client that is right for it. Nothing here makes a request."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from celery_s3 import processes
from celery_s3.bucket import open_store
from celery_s3.errors import ConfigurationError, Unreachable
from celery_s3.settings import Secret, Settings
from celery_s3.store.memory import MemoryStore
from celery_s3.store.routing import BIG, Routing

#: Python 3.12 warns of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ODD_KEYS = ["/k", "a//b", "a/", "./a", "a/../b", "..", "a/.", "a\nb", "\x00", "a\x7f"]
PLAIN_KEYS = ["k", "a/b", "a.b", "...", "a/.b/c..", "a b", "ü", "%2F", "a\\b"]


@pytest.fixture(autouse=True)
def ancestry(monkeypatch):
    """As if no process had used obstore before, and none of the tests."""
    ancestry = processes._Ancestry()
    monkeypatch.setattr(processes, "_ancestry", ancestry)
    return ancestry


class Named(MemoryStore):
    """A client that remembers who it is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.pid = os.getpid()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def routing(monkeypatch):
    """Routing over stores in memory, in a role that the test chooses; ``used`` is what each call went to."""
    for name in ("obstore", "boto3"):
        monkeypatch.setattr(f"celery_s3.store.routing._{name}", lambda settings, name=name: Named(name))

    def make(**values) -> Routing:
        return Routing(Settings(**{"bucket": "b"} | values))

    return make


def used(routing: Routing) -> dict[str, list[tuple[str, str]]]:
    clients = (routing._obstore.peek(), routing._boto3.peek())
    return {client.name: client.requests for client in clients if client is not None}


def test_obstore_is_the_usual_client(routing):
    """In an ordinary process every verb but LIST is obstore's, for every key that it can address."""
    store = routing()
    for key in PLAIN_KEYS:
        store.put(key, b"")
        store.get(key)
        store.delete(key)
    store.delete_many(PLAIN_KEYS)
    assert list(used(store)) == ["obstore"]
    assert len(used(store)["obstore"]) == 3 * len(PLAIN_KEYS) + 1


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_that_obstore_cannot_address(routing, key):
    """Empty and dot segments and control characters are boto3's, also one among many."""
    store = routing()
    store.put(key, b"")
    store.get(key)
    store.delete(key)
    store.delete_many(["plain", key])
    assert list(used(store)) == ["boto3"]


def test_listing_is_boto3s(routing):
    """Listing uses boto3 whatever is set, as obstore does not list keys as they are."""
    for client in ("auto", "obstore", "boto3"):
        store = routing(client=client)
        list(store.list("prefix"))
        assert list(used(store)) == ["boto3"]


def test_big_bodies_are_boto3s(routing):
    """A body above 8 MiB is boto3's, unless obstore is asked for."""
    store = routing()
    store.put("k", bytes(BIG))
    assert list(used(store)) == ["obstore"]
    store.put("k", bytes(BIG + 1))
    assert len(used(store)["boto3"]) == 1
    store = routing(client="obstore")
    store.put("k", bytes(BIG + 1))
    assert list(used(store)) == ["obstore"]


def test_uploads_are_boto3s(routing, monkeypatch, ancestry):
    """Uploads in parts use boto3 whatever is set, with short time-outs in a prefork parent."""
    for client in ("auto", "obstore", "boto3"):
        store = routing(client=client)
        upload(store)
        assert list(used(store)) == ["boto3"]
    monkeypatch.setattr(processes, "prefork_parent", lambda: True)
    store = routing()
    upload(store)
    assert list(used(store)) == ["boto3"]
    assert ancestry.used_by is None


def upload(store: Routing) -> None:
    upload_id = store.create_upload("k")
    store.complete_upload("k", upload_id, [store.put_part("k", upload_id, 1, b"")])
    store.abort_upload("k", upload_id)


@pytest.mark.parametrize("values", [{"client": "boto3"}, {"session": object()}, {"base": "/odd"}, {"base": "a//b"}])
def test_settings_that_need_boto3(routing, values):
    """The setting, an injected session and a base with empty segments send everything to boto3."""
    store = routing(**values)
    store.put("k", b"")
    assert list(used(store)) == ["boto3"]


@pytest.mark.parametrize("client", ["auto", "obstore", "boto3"])
def test_prefork_parent(routing, monkeypatch, ancestry, client):
    """A prefork worker's main process uses boto3 with short time-outs, and leaves obstore to its children."""
    monkeypatch.setattr(processes, "prefork_parent", lambda: True)
    store = routing(client=client)
    store.put("k", b"")
    store.get("k")
    list(store.list(""))
    assert list(used(store)) == ["boto3"]
    assert ancestry.used_by is None


def test_a_process_becomes_a_prefork_parent(routing, monkeypatch):
    """The situation is looked at anew at each call: the pool may be imported after the first request."""
    store = routing()
    store.put("k", b"")
    monkeypatch.setattr(processes, "prefork_parent", lambda: True)
    store.put("k", b"")
    assert list(used(store)) == ["obstore", "boto3"]


def test_forbidden_ancestry(routing, ancestry, caplog):
    """A child of a process that used obstore uses boto3, and says so once."""
    ancestry.used_by = os.getpid()
    ancestry.forked()
    store = routing()
    for _ in range(3):
        store.put("k", b"")
    assert list(used(store)) == ["boto3"]
    (record,) = [record for record in caplog.records if record.name.startswith("celery_s3")]
    assert record.levelno == logging.WARNING
    assert "Fork before" in record.getMessage()


def test_boto3_by_choice_needs_no_warning(routing, ancestry, caplog):
    """Who chose boto3 is not told that it is slower."""
    ancestry.inherited = True
    routing(client="boto3").put("k", b"")
    assert caplog.records == []


def test_greenlets(routing, monkeypatch):
    """Where sockets are patched, boto3 waits on them without blocking the hub."""
    monkeypatch.setattr(processes, "greenlets", lambda: True)
    store = routing()
    store.put("k", b"")
    assert list(used(store)) == ["boto3"]


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        (lambda patch: patch.setattr(processes, "obstore_forbidden", lambda: True), "forked"),
        (lambda patch: patch.setattr(processes, "greenlets", lambda: True), "hub"),
        (lambda patch: None, "segments"),
    ],
)
def test_obstore_where_it_cannot_be(routing, monkeypatch, obstacle, words):
    """`client` 'obstore' is an error that names reason and remedy, never a hang."""
    obstacle(monkeypatch)
    store = routing(client="obstore")
    with pytest.raises(ConfigurationError, match=rf"{words}.*'auto'"):
        store.get("a//b")
    assert used(store) == {}


def test_use_of_obstore_is_said_before_the_client_is_made(monkeypatch, ancestry):
    """A fork in the middle of the very first request finds it said already."""
    said = []
    monkeypatch.setattr("celery_s3.store.routing._obstore", lambda _: said.append(ancestry.used_by) or MemoryStore())
    Routing(Settings(bucket="b")).put("k", b"")
    assert said == [os.getpid()]


def test_threads_share_a_client(routing):
    """One client of a kind for all threads, however many begin at once."""
    store = routing()
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        store.put(f"{number}", b"")
        clients.add(id(store._obstore.peek()))

    clients: set[int] = set()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 1
    assert len(used(store)["obstore"]) == 8


def test_close_is_for_this_process(routing):
    """Closing reaches the clients that were made here, and the store may be used again."""
    store = routing()
    store.close()
    store.put("k", b"")
    list(store.list(""))
    store.close()
    obstore, boto3 = store._obstore.peek(), store._boto3.peek()
    assert (obstore.closed, boto3.closed) == (1, 1)
    store.put("k", b"")
    pid = os.fork()
    if pid == 0:
        store.close()
        os._exit(obstore.closed + boto3.closed - 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_opening_imports_and_connects_nothing():
    """The worker's banner makes the backend in the parent: no S3 library is imported, no thread started."""
    code = """
import sys, threading
from celery_s3.settings import Settings
from celery_s3.bucket import open_store
opened = open_store(Settings(bucket="b", endpoint_url="http://127.0.0.1:9"))
opened.close()
print([name for name in ("boto3", "botocore", "obstore") if name in sys.modules], threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["[]", "1"]


def test_what_is_opened_belongs_together(monkeypatch):
    """Retries and requests of the store are in the tally; the settings reach retries, probe and pool."""
    memory = MemoryStore()
    monkeypatch.setattr("celery_s3.store.routing._obstore", lambda settings: memory)
    settings = Settings(bucket="b", base="base/", endpoint_url="http://together.example", concurrency=3)
    opened = open_store(settings)
    assert opened.conditional.supported()
    assert memory.requests == [("PUT", "base/celery-s3-probe")] * 4
    assert opened.tally.snapshot()["PUT"]["requests"] == 4
    assert opened.pool.map(str, range(3)) == ["0", "1", "2"]
    opened.close()


def test_the_budget_is_max_retries(monkeypatch):
    """A request is tried again as often as `max_retries` says, in any process."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    keys = {"access_key_id": Secret("id"), "secret_access_key": Secret("secret")}
    endpoint = "http://127.0.0.1:9"
    opened = open_store(Settings(bucket="b", endpoint_url=endpoint, client="boto3", max_retries=4, **keys))
    with pytest.raises(Unreachable, match="5 tries"):
        opened.store.get("k")
    opened.close()
