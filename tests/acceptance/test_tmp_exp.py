import json, os, subprocess, sys, time
from pathlib import Path
TASKS = Path(__file__).with_name("tasks.py")
def test_x(seaweed, make_app, tmp_path):
    app = make_app(seaweed, broker="sqs")
    env = {**os.environ, "PYTHONPATH": str(TASKS.parent), "CELERY_S3_TEST_CONF": json.dumps(app.test_conf), "FETCH_AT_IMPORT": "1"}
    log = open(tmp_path/"log", "w+")
    p = subprocess.Popen([sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2", "--loglevel=INFO", "--max-tasks-per-child=2"], env=env, cwd=TASKS.parent, stdout=log, stderr=log)
    try:
        rs = [app.send_task("clients") for _ in range(8)]
        print([r.get(timeout=40) for r in rs])
    finally:
        p.terminate(); p.wait()
    text = (tmp_path/"log").read_text()
    print(text.count("S3 requests were made before"))
    print([l for l in text.splitlines() if "WARN" in l or "celery_s3" in l])
