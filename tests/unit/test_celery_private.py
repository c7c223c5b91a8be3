"""What stands for Celery's own: it answers as Celery does, sooner."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import KeyValueStoreBackend
from celery.result import AsyncResult

from celery_s3 import celery_private
from celery_s3.celery_private import ResultBackend, setting


def backend(**conf):
    return ResultBackend(Celery("unit", set_as_current=False, broker="memory://", changes=conf))


REQUESTS = {
    "none": None,
    "plain": Context({"id": "t"}),
    "group": Context({"id": "t", "group": "g", "parent_id": "p"}),
    "empty": Context({"id": "t", "group": "", "parent_id": None}),
    "children": Context({"id": "t", "children": [AsyncResult("child", app=SimpleNamespace(backend=None))]}),
    "lost": SimpleNamespace(id="t", chord=None),
    "full": Context(
        {"id": "t", "task": "a.b", "args": (1,), "kwargs": {}, "hostname": "h", "delivery_info": {"routing_key": "q"}}
    ),
}


@pytest.mark.parametrize("conf", [{}, {"timezone": "Asia/Tokyo"}, {"enable_utc": False}, {"result_extended": True}])
@pytest.mark.parametrize("request_of", REQUESTS)
@pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE, states.RETRY, states.STARTED])
def test_the_meta_is_celerys(conf, request_of, state):
    """What is stored is what this Celery makes of it: names, their order, values, and the form of the date."""
    made, told = backend(**conf), (1, state, "traceback", REQUESTS[request_of])
    ours, celerys = made._get_result_meta(*told), KeyValueStoreBackend._get_result_meta(made, *told)
    assert list(ours) == list(celerys)
    dates = [meta.pop("date_done") for meta in (ours, celerys)]
    assert ours == celerys
    if state not in states.READY_STATES:
        assert dates == [None, None]
        return
    first, second = map(datetime.fromisoformat, dates)
    assert first.utcoffset() == second.utcoffset()
    assert abs(second - first) < timedelta(minutes=1)


def test_a_later_celery_makes_its_own_meta(monkeypatch):
    """A version that nobody has compared may have another field: it is stored."""
    monkeypatch.setattr(celery_private, "_KNOWS_META", False)
    monkeypatch.setattr(KeyValueStoreBackend, "_get_result_meta", lambda *_, **__: {"status": "SUCCESS", "new": 1})
    assert backend()._get_result_meta(1, states.SUCCESS, None, None)["new"] == 1


def of_a_module(**names):
    app = Celery("unit", set_as_current=False)
    app.config_from_object(SimpleNamespace(**names), namespace="CELERY")
    return app.conf


def given(**names):
    return Celery("unit", set_as_current=False, changes=names).conf


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        (given(), False),
        (given(task_always_eager=True), True),
        (given(CELERY_ALWAYS_EAGER=True), True),
        (of_a_module(CELERY_TASK_ALWAYS_EAGER=True), True),
        (of_a_module(CELERY_TIMEZONE="UTC"), False),
    ],
)
def test_a_setting_by_any_of_its_names(conf, expected):
    """Old names, a namespace, a default, and what is changed later: as `conf` tells it."""
    name = "task_always_eager"
    assert setting(conf, name) == conf[name] == expected
    conf.task_always_eager = not expected
    # Celery before 5.7 goes by the name that it finds first, wherever that is.
    assert setting(conf, name) == conf[name]
    conf[f"{conf.prefix or ''}{name}".upper() if conf.prefix else name] = not expected
    assert setting(conf, name) == conf[name] == (not expected)
    with pytest.raises(KeyError):
        setting(conf, "no_such_setting")
