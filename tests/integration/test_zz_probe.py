import pytest, pickle, time
from celery.result import GroupResult
from kombu.utils.uuid import uuid

def test_lazy_state(counted, spends, stored, proxy):
    app = counted()
    r = stored(app, "x"*200_000)
    with spends(GET=1):
        assert r.state == "SUCCESS"
        assert r.ready()

def test_empty_inner(counted, stored):
    app = counted()
    a = stored(app, 1)
    g = app.GroupResult("g", [a, app.GroupResult("empty", []), ])
    assert g.get(timeout=2) == [1, []]

def test_spaces(counted, stored):
    app = counted()
    r = stored(app, {}, "A  B")
    assert r.state == "A  B"

def test_900(counted, stored):
    app = counted()
    r = stored(app, 5, id="x"*900)
    assert r.get() == 5

def test_big_parent(counted, stored, proxy):
    app = counted()
    a = stored(app, "x"*1_000_000)
    b = stored(app, 2)
    b.parent = a
    proxy.reset()
    assert b.get(timeout=3) == 2
    print(proxy.counts(), sum(r.received for r in proxy.records()))
    assert sum(r.received for r in proxy.records()) < 200_000

def test_join_large_parallel(counted, stored, proxy):
    app = counted()
    rs = [stored(app, "x"*100_000) for _ in range(8)]
    g = app.GroupResult("g", rs)
    proxy.configure(delay=0.02)
    proxy.reset()
    g.get(timeout=5)
    recs = proxy.records()
    print([(round(r.time-recs[0].time,3), r.headers.get("range")) for r in recs])

def test_forgotten(counted, stored, make_app, seaweed):
    app = counted()
    r = stored(app, "x"*100_000)
    assert r.state == "SUCCESS"
    make_app(seaweed).backend.forget(r.id)
    with pytest.raises(Exception):
        print("VALUE", r.get(timeout=1))

def test_garbage_group(counted, stored, make_app, seaweed, prefix):
    app = counted()
    app.backend.store.put(f"{prefix}celery-taskset-meta-g", b"garbage")
    with pytest.raises(Exception) as e:
        app.GroupResult.restore("g")
    print(repr(e.value))
    assert "celery-taskset-meta-g" in str(e.value)
