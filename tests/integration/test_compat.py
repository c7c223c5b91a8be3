"""The objects of Celery's own ``s3`` backend and of celery-s3 1.0.1 are ours to read, and ours are theirs."""

from __future__ import annotations

import json
import os
import pickle

import pytest
from celery import states
from celery.backends.s3 import S3Backend as CelerysBackend
from celery.result import GroupResult
from kombu.utils.uuid import uuid

from celery_s3.backends import S3Backend


@pytest.fixture
def server(moto_s3):
    """moto keeps a leading slash of a key, as AWS does; SeaweedFS drops it."""
    return moto_s3


@pytest.fixture
def both(make_app, server, prefix):
    """``both(s3_base_path="…")``: an app with our backend and one with Celery's, of the same settings."""
    closing = []

    def make(**conf):
        values = {
            "s3_bucket": server.bucket,
            "s3_region": server.region,
            "s3_endpoint_url": server.endpoint_url,
            "s3_access_key_id": server.access_key,
            "s3_secret_access_key": server.secret_key,
            "s3_backend_settings": None,
            **conf,
        }
        apps = make_app(server), make_app(server)
        for app, backend in zip(apps, ("celery_s3.backends.S3Backend", "s3"), strict=True):
            app.conf.update(values, result_backend=backend)
        assert [type(app.backend) for app in apps] == [S3Backend, CelerysBackend]
        closing.append(apps[1].backend._s3_resource.meta.client)
        return apps

    yield make
    for client in closing:
        client.close()


BASES = ["{}", "{}/", "/lead-{}/", "{}//twice/", None]


@pytest.mark.parametrize("base", BASES)
def test_each_reads_the_other(both, stored, prefix, base):
    """Under the same `s3_base_path`, verbatim, each backend reads the other's results."""
    base = base and base.format(prefix.rstrip("/"))
    ours, celerys = both(s3_base_path=base)
    for writer, reader in ((ours, celerys), (celerys, ours)):
        done, failed = stored(writer, [1, "é"]), stored(writer, KeyError("gone"), states.FAILURE)
        assert reader.AsyncResult(done.id).get(timeout=5) == [1, "é"]
        with pytest.raises(KeyError, match="gone"):
            reader.AsyncResult(failed.id).get(timeout=5)
        assert reader.AsyncResult(stored(writer, {"done": 1}, "PROGRESS").id).info == {"done": 1}
        reader.AsyncResult(done.id).forget()
        assert writer.AsyncResult(done.id).state == "PENDING"


@pytest.mark.parametrize("base", BASES[:3])
def test_keys_are_celerys(both, stored, server, prefix, base):
    """The key is `s3_base_path` and Celery's name for the result, with nothing added or taken away."""
    base = base.format(prefix.rstrip("/"))
    ours, celerys = both(s3_base_path=base)
    result = stored(ours, 1)
    key = f"{base}celery-task-meta-{result.id}"
    client = celerys.backend._s3_resource.meta.client
    assert json.load(client.get_object(Bucket=server.bucket, Key=key)["Body"])["result"] == 1


@pytest.mark.parametrize("serializer", ["json", "yaml"])
def test_serializers(both, stored, prefix, serializer):
    """With another serializer that is text, too."""
    ours, celerys = both(s3_base_path=prefix, result_serializer=serializer, result_accept_content=[serializer])
    for writer, reader in ((ours, celerys), (celerys, ours)):
        assert reader.AsyncResult(stored(writer, {"a": 1}).id).get(timeout=5) == {"a": 1}


def test_global_keyprefix(both, stored, prefix):
    """With `global_keyprefix`, too."""
    options = {"global_keyprefix": "blue"}
    ours, celerys = both(s3_base_path=prefix, result_backend_transport_options=options)
    for writer, reader in ((ours, celerys), (celerys, ours)):
        assert reader.AsyncResult(stored(writer, 1).id).get(timeout=5) == 1


def test_groups(both, stored, prefix):
    """Each restores the groups that the other saved, and joins them."""
    ours, celerys = both(s3_base_path=prefix)
    for writer, reader in ((ours, celerys), (celerys, ours)):
        group = writer.GroupResult(uuid(), [stored(writer, 1), stored(writer, 2)])
        group.save()
        restored = GroupResult.restore(group.id, backend=reader.backend, app=reader)
        assert [member.id for member in restored] == [member.id for member in group]
        assert [reader.AsyncResult(member.id).get(timeout=5) for member in restored] == [1, 2]


def test_celerys_success_is_final(both, stored, prefix):
    """A SUCCESS that Celery's backend stored is not replaced, as it does not replace ours."""
    ours, celerys = both(s3_base_path=prefix)
    for writer, late in ((celerys, ours), (ours, celerys)):
        result = stored(writer, "first")
        stored(late, KeyError("late"), states.FAILURE, id=result.id)
        assert writer.AsyncResult(result.id).get(timeout=5) == "first"


def test_a_mixed_fleet(both, stored, prefix):
    """A task that is started by a worker with one backend may be finished by one with the other."""
    ours, celerys = both(s3_base_path=prefix)
    for first, second in ((ours, celerys), (celerys, ours)):
        result = stored(first, {"pid": 1}, "STARTED")
        stored(second, "done", id=result.id)
        assert first.AsyncResult(result.id).get(timeout=5) == "done"


# -- 1.0.1


def boto2_key(base_path, name):
    """Where 1.0.1 put an object: it joined the parts, and boto 2 left out empty segments when it built the path."""
    joined = os.path.join(base_path, name) if base_path else name
    return "/".join(segment for segment in joined.split("/") if segment)


META = {"status": "SUCCESS", "result": 42, "traceback": None, "children": []}
FAILED = {"status": "FAILURE", "result": {"exc_type": "KeyError", "exc_message": "gone"}, "traceback": "Traceback …"}


@pytest.fixture
def old(server, make_app, prefix):
    """``old(base_path, serializer)``: an app, and a function that stores an object as 1.0.1 did."""

    def make(base_path, serializer="json"):
        base_path = base_path.format(prefix.rstrip("/"))
        app = make_app(
            server,
            s3_backend_settings={"base_path": base_path},
            result_serializer=serializer,
            result_accept_content=[serializer],
        )

        def put(name, meta):
            body = pickle.dumps(meta, 2) if serializer == "pickle" else json.dumps(meta).encode()
            app.backend.store.put(boto2_key(base_path, name), body, content_type="application/octet-stream")

        return app, put

    return make


@pytest.mark.parametrize("base_path", ["/{}/", "{}", "{}/", "/{}", ""])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_results_of_1_0_1(old, base_path, serializer):
    """What 1.0.1 stored is found under the same `base_path`, however that was written."""
    app, put = old(base_path, serializer)
    done, failed = uuid(), uuid()
    put(f"celery-task-meta-{done}", META | {"task_id": done})
    put(f"celery-task-meta-{failed}", FAILED | {"task_id": failed})
    assert app.AsyncResult(done).get(timeout=5) == 42
    result = app.AsyncResult(failed)
    error = result.get(timeout=5, propagate=False)
    assert (type(error).__name__, error.args, result.traceback) == ("KeyError", ("gone",), "Traceback …")
    app.backend.mark_as_failure(done, KeyError("late"))
    assert app.AsyncResult(done).get(timeout=5) == 42
    app.AsyncResult(done).forget()
    assert app.AsyncResult(done).state == "PENDING"


def test_groups_of_1_0_1(old):
    """Its saved groups are restored."""
    app, put = old("/{}/")
    put("celery-taskset-meta-g", {"result": [["g", None], [[["one", None], None], [["two", None], None]]]})
    restored = app.GroupResult.restore("g", backend=app.backend, app=app)
    assert [member.id for member in restored] == ["one", "two"]


@pytest.mark.parametrize("base_path", ["/{}/", "{}", "{}/", ""])
def test_1_0_1_finds_ours(old, stored, base_path):
    """1.0.1 would find ours: its key holds a body that its decoder reads."""
    app, _ = old(base_path)
    result = stored(app, 7)
    base = app.backend.settings.base
    found = app.backend.store.get(boto2_key(base, f"celery-task-meta-{result.id}"))
    assert json.loads(found.body)["result"] == 7
