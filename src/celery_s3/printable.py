"""Names from outside, as ids, keys and what a server says, on their way into a log, an error or a terminal.

A line break in one would forge a line, an escape sequence would reach the terminal. So every logger of ours is made
here, every error of ours tells its text through :func:`printable`, and so does whatever a command prints.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

__all__ = ["get_logger", "printable"]


def printable(text: str, keep: str = "") -> str:
    """The text with its control characters escaped, but for those to ``keep``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else f"\\x{ord(char):02x}" for char in text)


def get_logger(name: str) -> logging.Logger:
    """The logger of that name; texts among the arguments of its records are made printable."""
    logger = logging.getLogger(name)
    logger.addFilter(_escaping)
    return logger


class _Escaping(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, Mapping):
            record.args = {name: _shown(value) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(map(_shown, record.args))
        return True


def _shown(argument: object) -> object:
    return printable(argument) if isinstance(argument, str) else argument


_escaping = _Escaping()
