"""An HTTP server that answers what a test tells it to, and keeps every request it was sent."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import IO

BUCKET = "scripted"


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One answer; ``fault`` breaks it: ``reset``, ``silence``, ``cut`` after half of the body, or ``stall`` there."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""


def error(status: int, code: str, message: str = "said the server", extra: str = "") -> Answer:
    """An S3 error document."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return Answer(
        status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode(), {"Content-Type": "application/xml"}
    )


def stored(body: bytes = b"", **headers: str) -> Answer:
    """A GET's answer for an object that stands."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(200, body, {"ETag": '"e1"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT", **named})


class ScriptedServer:
    """Answers every request with ``answer`` (or with the next of ``answers``) until told otherwise."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        #: sent to whoever connects, before anything is read
        self.greeting = b""
        #: how fast bodies are read; 0 is at once
        self.bytes_per_second = 0
        self.answer = Answer(headers={"ETag": '"e1"'})
        self.answers: list[Answer] = []
        self.requests: list[Request] = []
        self._stopped = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        # the less waits in buffers, the sooner a slow reader is felt
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def endpoint_url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            connection.sendall(self.greeting)
            self._answer(connection)
        except OSError:
            # the client went away, which some tests are about
            connection.close()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while (request := self._read(stream, connection)) is not None:
                self.requests.append(request)
                answer = self.answers.pop(0) if self.answers else self.answer
                if not self._send(connection, request, answer):
                    return

    def _read(self, stream: IO[bytes], connection: socket.socket) -> Request | None:
        line = stream.readline().decode("latin-1").split()
        if len(line) < 2:
            return None
        headers: dict[str, str] = {}
        while text := stream.readline().decode("latin-1").strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(line[0], line[1], headers, self._read_body(stream, int(headers.get("content-length", 0))))

    def _read_body(self, stream: IO[bytes], length: int) -> bytes:
        if not self.bytes_per_second:
            return stream.read(length)
        body = b""
        while len(body) < length and (piece := stream.read(min(65536, length - len(body)))):
            body += piece
            time.sleep(len(piece) / self.bytes_per_second)
        return body

    def _send(self, connection: socket.socket, request: Request, answer: Answer) -> bool:
        """Send one answer; whether the connection can take another request."""
        if answer.fault == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if answer.fault == "silence":
            self._stopped.wait(30)
            return False
        body = b"" if request.method == "HEAD" else answer.body
        half = answer.fault in ("cut", "stall")
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        head = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(head.encode("latin-1") + b"\r\n" + (body[: len(body) // 2] if half else body))
        if answer.fault == "stall":
            self._stopped.wait(30)
        return not half
