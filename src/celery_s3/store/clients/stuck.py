"""Threads that wait for a server which nobody waits for any more."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from http.client import HTTPConnection

__all__ = ["break_connection"]


def break_connection(thread: int) -> None:
    """Let a thread's HTTP request end with an error, if it reads from its socket or sends to it."""
    number = _socket_of(thread)
    if number is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as same:
            same.shutdown(socket.SHUT_RDWR)


def _socket_of(thread: int) -> int | None:
    """The file number of the socket that a thread waits for, ``None`` where it does something else.

    Neither botocore nor urllib3 tells it: it is read off the thread's stack, where the standard library's own
    objects stand.
    """
    frame = sys._current_frames().get(thread)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, HTTPConnection):
            found = found.sock
        if isinstance(found, socket.socket | socket.SocketIO):
            number = found.fileno()
            return number if number >= 0 else None
        frame = frame.f_back
    return None
