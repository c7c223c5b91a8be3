import time
from pathlib import Path
TASKS = Path(__file__).with_name("tasks.py")
def test_smoke(seaweed, make_app, worker):
    t=time.time()
    app = make_app(seaweed, broker="sqs")
    w = worker(app, TASKS)
    print("start", time.time()-t)
    t=time.time()
    r = app.send_task("add", args=(1,2))
    assert r.get(timeout=20)==3
    print("add", time.time()-t)
    print(app.send_task("clients").get(timeout=10))
    from celery import group, chain, chord
    s=lambda n,*a: app.signature(n,args=a)
    g = group([s("add",i,i) for i in range(50)], app=app)
    print(sum(g.apply_async().get(timeout=20)), time.time()-t)
    print(chain(s("add",1,2), s("add",3), s("add",4)).apply_async().get(timeout=10), time.time()-t)
    print(chord([s("add",i,i) for i in range(5)], app=app)(s("total")).get(timeout=20), time.time()-t)
    print(w.log)
