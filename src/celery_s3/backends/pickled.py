"""Backends on their way to other processes and threads, as Celery pickles one with each of its results.

What travels are the settings without their secrets; credentials are found again where the result arrives. There, the
backend is shared: with the one that was pickled where that is in this process, else with one of equal settings, else
with what was made for an earlier result. So it is no matter which app is current there, nor how many results come.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from celery import Celery, current_app
from celery.app.defaults import NAMESPACES, flatten

from celery_s3.settings.kinds import ProxyMap, Session, Token
from celery_s3.settings.options import ALIASES, OPTIONS
from celery_s3.settings.seal_keys import SealKeys
from celery_s3.settings.sources import DICT_NAMES

__all__ = ["pickled"]

#: Celery's settings that say how a result is stored and read, by the beginnings of their names.
_ABOUT_RESULTS = ("result_", "s3_", "accept_content")
_CELERYS = [name for name, _ in flatten(NAMESPACES) if name.startswith(_ABOUT_RESULTS)]
#: What `seal_keys` may say of a key instead of telling it.
_REFERENCES = ("file:", "env:", "kms:")

#: The backends that were pickled in this process, with what tells each from others of equal settings; and those that
#: were made here.
_tokens: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_made: list[tuple[dict[str, Any], Any]] = []
_lock = threading.RLock()


def pickled(backend: Any) -> tuple[Any, ...]:
    """What `__reduce__` returns of a backend."""
    token = _tokens.setdefault(backend, uuid4().hex)
    return _unpickled, (type(backend), token, backend.url, backend.expires, _settings(backend.app.conf))


def _unpickled(cls: type, token: str, url: str | None, expires: Any, conf: dict[str, Any]) -> Any:
    """The backend that a pickle stands for.

    Raises:
        ConfigurationError: what is needed beside the settings that travel, as the keys of `seal_keys`, is not here.
    """
    said = {"class": cls, "url": url, "expires": expires, **conf}
    with _lock:  # results arrive in many threads at a time
        known = list(_tokens.items())
        for backend, other in known:
            if other == token:
                return backend
        for backend in (_current(cls), *(backend for backend, _ in known)):
            if backend is not None and said == _said(backend):
                return backend
        for found, backend in _made:
            if found == said:
                return backend
        app = Celery("celery-s3", set_as_current=False)
        app.conf.update(conf)
        _made.append((said, cls(app=app, url=url, expires=expires)))
        return _made[-1][1]


def _said(backend: Any) -> dict[str, Any]:
    return {
        "class": type(backend),
        "url": backend.url,
        "expires": backend.expires,
        **_settings(backend.app.conf),
    }


def _current(cls: type) -> Any:
    """The current app's backend where it is one of ours, made if need be: it has the credentials that do not travel."""
    conf = current_app.conf
    named = str(conf.get("result_backend") or "")
    if not named.startswith(("celery-s3", "s3", "celery_s3")):
        return None
    backend = current_app.backend
    return backend if type(backend) is cls else None


def _settings(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Celery's settings about results, by name, without what is secret."""
    names = {option.celery: option.name for option in OPTIONS.values() if option.celery}
    of_celery = ((name, conf.get(name)) for name in _CELERYS if name not in DICT_NAMES)
    kept = {
        name: value
        for name, value in of_celery
        if value is not None and name != "result_backend" and _may_travel(names.get(name) or "", value)
    }
    ours = next((given for name in DICT_NAMES if isinstance(given := conf.get(name), Mapping)), None)
    if ours is not None:
        kept[DICT_NAMES[0]] = {
            name: value for name, value in ours.items() if _may_travel(str(ALIASES.get(name, name)), value)
        }
    return kept


def _may_travel(name: str, value: Any) -> bool:
    kind = OPTIONS[name].kind if name in OPTIONS else None
    if isinstance(kind, Token | Session):
        return False
    if isinstance(kind, ProxyMap):
        return not any("@" in text for text in _texts(value))
    if isinstance(kind, SealKeys):
        return all(text.startswith(_REFERENCES) for text in _texts(value))
    return True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        return chain.from_iterable(map(_texts, value.values()))
    return iter(map(str, value)) if isinstance(value, list | tuple) else iter((str(value),))
