"""What was said where: the URL, the dict ``s3_backend_settings``, and the names of Celery's own ``s3`` backend."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .kinds import BasePath, Token, ValueKind, Wrong, shown
from .options import ALIASES, OPTIONS
from .seal_keys import SealKeys

__all__ = ["DICT_NAMES", "Given", "from_celery", "from_dict", "from_url"]

#: The names under which Celery hands out the one dict: with new-style or Django-style settings, and with 1.0.1's.
DICT_NAMES = ("s3_backend_settings", "CELERY_S3_BACKEND_SETTINGS", "S3_BACKEND_SETTINGS")
_DICT = "s3_backend_settings"
_SCHEMES = ("celery-s3", "s3")
_CREDENTIAL = re.compile("key|secret|token|passw|credential", re.IGNORECASE)
_NO_CREDENTIALS = (
    "the result backend's URL seems to hold credentials: remove them, change them where the URL was printed"
    " (`celery report` prints it), and set them in s3_backend_settings or the AWS environment."
    " A literal `@` is written %40. The bucket stands where other URLs have the server, which goes into"
    " `endpoint_url=`: celery-s3://bucket/prefix?endpoint_url=http://localhost:9000"
)
_UNPARSABLE = (
    "the result backend's URL cannot be read: write celery-s3://bucket/prefix?region=eu-central-1, and in a value"
    " %20 for a space, %23 for `#`, %25 for `%`, %26 for `&`"
)

Query = list[tuple[str, str]]


@dataclass(frozen=True)
class Given:
    """A value that somebody gave a setting; `where` names setting and source for messages."""

    name: str
    value: object
    where: str
    kind: ValueKind

    def checked(self) -> object:
        """The value to use.

        Raises:
            Wrong: it cannot be used.
        """
        return self.kind.check(self.value)


#: What settings of other backends are called here.
_ELSEWHERE = {"use_ssl": "say it by `endpoint_url`: https:// or http://"}


def nearest(name: str, known: list[str]) -> str:
    """The remedy for a name that nobody knows."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    import difflib  # for mistakes alone

    found = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean `{found[0]}`?" if found else f"valid are {', '.join(known)}"


def from_dict(conf: Mapping[str, Any], mistakes: list[str]) -> Iterator[Given]:
    """The dict, whichever of its names the application uses. ``None`` counts as not given."""
    found = [given for name in DICT_NAMES if (given := conf.get(name)) is not None]
    if any(given is not found[0] for given in found[1:]):
        mistakes.append(f"{_DICT} is given twice, also as CELERY_S3_BACKEND_SETTINGS: keep one")
    if not found:
        return
    if not isinstance(found[0], Mapping):
        mistakes.append(f"{_DICT} must be a dict, not {type(found[0]).__name__}")
        return
    for key, value in found[0].items():
        name = ALIASES.get(key, key)
        if name not in OPTIONS:
            mistakes.append(f"{shown(key)} in {_DICT} is unknown: {nearest(str(key), list(OPTIONS))}")
        elif name != key and found[0].get(name) is not None:
            mistakes.append(f"`{key}` in {_DICT} is another name for `{name}`, which is given too: keep one")
        elif value is not None:
            yield Given(name, value, f"`{key}` in {_DICT}", OPTIONS[name].kind)


def from_celery(conf: Mapping[str, Any]) -> Iterator[Given]:
    """The settings of Celery's own backend, where an empty value is as good as none."""
    for option in OPTIONS.values():
        value = conf.get(option.celery) if option.celery else None
        if value is not None and value != "":
            kind = BasePath(verbatim=True) if option.name == "base_path" else option.kind
            yield Given(option.name, value, f"`{option.celery}`", kind)


def from_url(url: str | None, mistakes: list[str]) -> Iterator[Given]:
    """The parts and the query of ``celery-s3://bucket/prefix?region=…``.

    No message shows a piece of a URL that may belong to a password.

    Raises:
        Wrong: nothing can be read from the URL, or it holds credentials.
    """
    if not url:
        return
    bucket, path, query = _split(url)
    if bucket:
        yield Given("bucket", bucket, "the bucket in the URL", OPTIONS["bucket"].kind)
    if path:
        yield Given("base_path", path, "the path in the URL", OPTIONS["base_path"].kind)
    yield from _from_query(query, mistakes)


def _split(url: str) -> tuple[str, str, Query]:
    """Bucket, path and query of a URL."""
    if url.partition(":")[0] == "celery_s3":
        raise Wrong("the URL begins with celery-s3://, with a hyphen, and this one has an underscore")
    # not only before the host: a secret may hold `/`, `?` or `#`, and then the `@` behind it is in path or query
    if "@" in url:
        raise Wrong(_NO_CREDENTIALS)
    # urlsplit would drop line breaks silently, and cut off what stands behind `#`: both may be a part of a value
    if re.search(r"[\x00-\x20\x7f#]", url):
        raise Wrong(_UNPARSABLE)
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict").lstrip("/")
        query = _query(parts.query)
    except ValueError:
        raise Wrong(_UNPARSABLE) from None
    host = unquote(parts.netloc)
    if ":" in host or "@" in host or any(_is_credential(key) for key, _ in query):
        raise Wrong(_NO_CREDENTIALS)
    if parts.scheme not in _SCHEMES:
        raise Wrong(_UNPARSABLE)
    return parts.netloc, path, query


def _query(text: str) -> Query:
    return parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict") if text else []


def _is_credential(key: str) -> bool:
    known = OPTIONS.get(key)
    return isinstance(known.kind, Token | SealKeys) if known else bool(_CREDENTIAL.search(key))


def _from_query(query: Query, mistakes: list[str]) -> Iterator[Given]:
    known = [name for name, option in OPTIONS.items() if option.in_url]
    names = [ALIASES.get(key, key) for key, _ in query]
    mistakes.extend(f"`{name}` is given {n} times in the URL: keep one" for name, n in Counter(names).items() if n > 1)
    for name, (key, text) in zip(names, query, strict=True):
        where = f"`{key}` in the URL"
        if name not in known:
            mistakes.append(f"{shown(key)} in the URL is unknown: {nearest(key, known)}")
            continue
        kind = OPTIONS[name].kind
        try:
            yield Given(name, kind.parse(text), where, kind)
        except Wrong as exc:
            mistakes.append(f"{where}: {exc}")
