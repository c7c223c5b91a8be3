import time
from pathlib import Path
import pytest
TASKS = Path(__file__).with_name("tasks.py")
@pytest.mark.parametrize("kind", ["ours", "redis", "ours-boto3"])
def test_rate(seaweed, redis_url, make_app, worker, kind, eventually):
    conf = {}
    if kind == "redis":
        conf["result_backend"] = redis_url.replace("/0", "/1")
    if kind == "ours-boto3":
        conf["s3_backend_settings"] = {"client": "boto3"}
    app = make_app(seaweed, broker="redis", **conf)
    one = worker(app, TASKS, args=["--max-tasks-per-child=1"])
    t = time.time()
    rs = [app.send_task("add", (n, 1)) for n in range(20)]
    eventually(lambda: one.log.count("succeeded") == 20, 60)
    print(kind, time.time() - t)

@pytest.mark.parametrize("pool", ["gevent","threads"])
def test_many(seaweed, proxy, redis_url, make_app, worker, pool, eventually):
    app = make_app(seaweed, broker="redis", s3_backend_settings={"endpoint_url": proxy.endpoint_url,"client":"boto3"})
    one = worker(app, TASKS, pool=pool, concurrency=100)
    app.send_task("add", (1, 1)).get(timeout=20)
    proxy.configure(delay=0.3)
    t = time.time()
    rs = [app.send_task("add", (n, 1)) for n in range(200)]
    eventually(lambda: one.log.count("succeeded") == 201, 60)
    print(pool, time.time() - t, proxy.peak())
    print([l for l in one.log.splitlines() if "INFO/" not in l][30:60])
