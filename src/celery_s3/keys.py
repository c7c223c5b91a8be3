"""Every key of the product, both directions.

::

    <base><global_keyprefix>celery-task-meta-<id>       a result
    <base><global_keyprefix>celery-taskset-meta-<id>    a saved group
    <base><global_keyprefix>chords/<group id>/…         a chord: see chords/service.py
    <base><global_keyprefix>chords-repaired             when chords were mended last: see backends/repair.py
    <base><global_keyprefix>celery-files/<id>/<random>  a file that a task returned: see files/store.py
    <base>messages/<digest>[.<random>]                  the arguments of a message: see claimcheck/messages.py
    <base>celery-s3-probe                               see store/probe.py
    <base>celery-s3-doctor/…, <base>celery-s3-bench/…   what these commands try, and delete

These are the names that celery-s3 1.0.1 and Celery's own ``s3`` backend use. An id goes into its key as it
is, unless a client or a server would change it on the way: then the characters in question are
percent-encoded, so that two ids never share a key and each key gives its id back.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["FILES", "MAX_KEY_BYTES", "MESSAGES", "decode_id", "encode_id", "full_key", "result_id"]

#: Behind the base and Celery's `global_keyprefix`: files.
FILES = "celery-files/"
#: Behind the base: what messages point to.
MESSAGES = "messages/"
#: S3's limit on a key, in bytes of UTF-8.
MAX_KEY_BYTES = 1024

# What does not survive: control characters and noncharacters (XML listings cannot hold them), the backslash
# (SeaweedFS makes it a slash), a slash before an empty or dot segment (object_store refuses those, urllib3
# folds them), and a percent sign that would be read back as one of our own escapes.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ufffe\uffff]|/(?=/|\Z|\.{1,2}(?:/|\Z))|%(?=[0-9A-Fa-f]{2})")
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode())


def encode_id(id: str) -> str:
    """The id as it stands in a key; :func:`decode_id` is the inverse.

    Raises:
        ValueError: the id is empty, or is no text that UTF-8 can hold.
    """
    if not id:
        raise ValueError("task_id must not be empty: an S3 result needs an id to be stored under")
    try:
        id.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"id {id!r} cannot be an S3 key: it holds a lone surrogate. Use another id.") from exc
    return _UNSAFE.sub(_escape, id)


def decode_id(text: str) -> str:
    """The id that :func:`encode_id` encoded; a name that it cannot have made is returned as it is."""
    try:
        return _ESCAPED.sub(lambda match: unquote(match.group(), errors="strict"), text)
    except UnicodeDecodeError:
        return text


def full_key(base: str, name: str) -> str:
    """``base`` and ``name`` as one key.

    Raises:
        ValueError: the key is longer than S3 allows.
    """
    key = base + name
    length = len(key.encode())
    if length > MAX_KEY_BYTES:
        raise ValueError(
            f"the key for {name[:60]!r}… has {length} bytes, S3 allows {MAX_KEY_BYTES}: use a shorter id or base_path"
        )
    return key


def result_id(key: str, prefix: str) -> str | None:
    """The id in a full key that starts with ``prefix`` (base and key prefix), ``None`` for another key."""
    return decode_id(key[len(prefix) :]) if key.startswith(prefix) and len(key) > len(prefix) else None
