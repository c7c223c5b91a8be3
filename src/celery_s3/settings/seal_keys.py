"""The kind of the setting that holds keys: where each one is, and that it is one."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path

from .kinds import ValueKind, Wrong, shown, text_of
from .secret import Secret

__all__ = ["KEY_BYTES", "SealKeys"]

KEY_BYTES = 32

_KMS = re.compile(r"kms://(alias/[A-Za-z0-9/_-]+|arn:aws[a-z-]*:kms:[!-~]+|(?:mrk-)?[0-9a-fA-F-]{32,36})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAKE = "make one with `openssl rand -base64 32`"


class SealKeys(ValueKind):
    """One key or several: as text, in a variable of the environment, in a file, or in AWS KMS.

    No message shows what may be a key, or a part of one.
    """

    description = f"`kms://…`, `env:NAME`, `file:/path` or {KEY_BYTES} bytes in base64; or a list of these"

    def check(self, value: object) -> object:
        """The keys, each 32 bytes in base64 or ``kms://…``; files and variables are read.

        Returns:
            A tuple of :class:`Secret`.
        """
        given = value if isinstance(value, list | tuple) else [value]
        if not given:
            raise Wrong(f"is an empty list: give {self.description}, or leave it out")
        texts = (one.reveal() if isinstance(one, Secret) else one for one in given)
        return tuple(Secret(_key(one), _file(one)) for one in texts)


def _file(value: object) -> str:
    text = str(value)
    return os.path.expanduser(text.removeprefix("file:")) if text.startswith("file:") else ""


def _key(value: object) -> str:
    """The key as the settings hold it."""
    text = text_of(value)
    if text.startswith("kms:"):
        if not _KMS.fullmatch(text):
            raise Wrong(f"{shown(text)} names no KMS key: give kms://alias/results, or the key's id or ARN behind //")
        return text
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        if not _NAME.fullmatch(name):
            # not shown: it may be the key itself
            raise Wrong("what stands behind `env:` is not the name of a variable: letters, digits and `_`")
        return _of_32_bytes(_variable(name), f"the variable {shown(name)}")
    if text.startswith("file:"):
        path = _file(text)
        return _of_32_bytes(_content(path), f"the file {shown(path)}")
    return _of_32_bytes(text, "a key")


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise Wrong(f"the environment has no variable {shown(name)}: set it to a key, {_MAKE}") from None


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError as exc:
        raise Wrong(f"the file {shown(path)} cannot be read ({exc.strerror}): give the path of a key") from None
    except UnicodeDecodeError:
        raise Wrong(f"the file {shown(path)} is no text: it must hold a key in base64, {_MAKE}") from None


def _of_32_bytes(text: str, what: str) -> str:
    try:
        key = base64.b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise Wrong(f"{what} is not in base64: {_MAKE}") from None
    if len(key) != KEY_BYTES:
        raise Wrong(f"{what} has {len(key)} bytes, not {KEY_BYTES}: {_MAKE}")
    return base64.b64encode(key).decode()
