"""gevent and eventlet against a real server: other greenlets run while a request waits."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

PATCH = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all(); from gevent import sleep, spawn",
    "eventlet": "import eventlet; eventlet.monkey_patch(); from eventlet import sleep, spawn",
}
IMPORT = "from celery_s3.bucket import open_store"

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
{setup}
import pickle, threading

settings = pickle.load(sys.stdin.buffer)
opened = open_store(settings)
base = settings.base
ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        sleep(0.01)

def others_run(call, *args, **options):
    before = ticks
    answer = call(*args, **options)
    # twenty where nobody else has the processor, none where the hub is blocked
    assert ticks - before >= 3, f"{{ticks - before}} ticks during {{call.__name__}}"
    return answer

spawn(tick)
sleep(0)
store, keys = opened.store, [f"{{base}}{{number}}" for number in range(12)]
assert opened.conditional.supported()
for key in keys[:2]:
    etag = others_run(store.put, key, key.encode())
    assert others_run(store.get, key).etag == etag
writers = [threading.Thread(target=store.put, args=(key, key.encode())) for key in keys[2:]]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
found = others_run(opened.pool.map, store.get, keys)
assert [each.body.decode() for each in found] == keys
stream = opened.pool.stream(store.get, keys)
next(stream)
stream.close()
listed = [entry.key for entry in others_run(lambda: list(store.list(base)))]
assert listed == sorted([*keys, f"{{base}}celery-s3-probe"])
others_run(store.delete_many, keys)
opened.close()
counted = opened.tally.snapshot()
routing = store
while hasattr(routing, "_inner"):
    routing = routing._inner
print(type(routing._boto3.peek()._client).__name__, routing._obstore.peek(), counted["PUT"]["retries"])
"""


def run(program: str, settings: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(settings), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.mark.parametrize("library", PATCH)
@pytest.mark.parametrize("first", ["patched first", "imported first"])
def test_the_hub_is_not_blocked(seaweed, proxy, settings_for, library, first):
    """During every slow request, and during the wait before a retry, other greenlets run; the answers are right."""
    steps = [PATCH[library], IMPORT]
    if first == "imported first":
        steps.reverse()
    proxy.configure(delay=0.2)
    proxy.fail("PUT", "slow_down", times=2, after=4)
    settings = settings_for(seaweed, endpoint_url=proxy.endpoint_url)
    assert run(PROGRAM.format(setup="\n".join(steps)), settings) == "Boto3Client None 2"
    assert proxy.peak() > 4


@pytest.mark.parametrize("library", PATCH)
def test_obstore_is_refused(seaweed, settings_for, library):
    """`client` 'obstore' is an error there, not a hub that stands still."""
    program = f"""
import sys, warnings
warnings.simplefilter("ignore")
{PATCH[library]}
{IMPORT}
from celery_s3.errors import ConfigurationError
import pickle
try:
    open_store(pickle.load(sys.stdin.buffer)).store.get("k")
except ConfigurationError as exc:
    print(exc)
"""
    assert "would block the hub" in run(program, settings_for(seaweed, client="obstore"))
