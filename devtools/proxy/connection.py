"""The proxy's connections: a client's, and behind each one to the server."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from . import faults, http1
from .traffic import Traffic

__all__ = ["Client", "Relay"]

_SLICES = 10


@dataclass
class Relay:
    """What all connections share: where to, how, and what has passed."""

    upstream: tuple[str, int]
    secret_key: str
    delay: float = 0.0
    strip_preconditions: bool = False
    faults: faults.Faults = field(default_factory=faults.Faults)
    traffic: Traffic = field(default_factory=Traffic)
    clients: set[Client] = field(default_factory=set)


class Upstream(asyncio.Protocol):
    """The server's end of a client's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.answered(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._client.upstream_lost(self)

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        self._client.transport.resume_reading()


class Client(asyncio.Protocol):
    """One client's connection, with one to the server behind it; one request at a time."""

    transport: asyncio.Transport

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._loop = asyncio.get_running_loop()
        self._incoming = b""
        self._upstream: asyncio.Transport | None = None
        self._protocol: Upstream | None = None
        self._unsent: list[bytes] | None = None  # what waits for the connection to the server
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False

    # -- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._relay.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._relay.clients.discard(self)
        self._end_exchange()
        if self._timer:
            self._timer.cancel()
        if self._upstream:
            self._upstream.abort()

    def pause_writing(self) -> None:
        if self._upstream:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream:
            self._upstream.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._incoming = self._incoming + data if self._incoming else data
        self._advance()

    def _advance(self) -> None:
        """Take from what came in: a head, then its body; what follows waits until the answer is out."""
        if not self._busy and not self._begin():
            return
        if self._request.done or not self._incoming:
            return
        taken = self._request.feed(self._incoming)
        body, self._incoming = self._incoming[:taken], self._incoming[taken:]
        self._record["sent"] += taken
        self._forward(body)
        if self._request.done:
            self._asked()

    def _begin(self) -> bool:
        end = self._incoming.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = http1.Head(self._incoming[: end + 4])
        self._incoming = self._incoming[end + 4 :]
        self._open_exchange(head)
        raw = head.raw
        if self._relay.strip_preconditions:
            raw = http1.without_preconditions(head, self._relay.secret_key)
        self._forward(raw)
        if self._withheld and head.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._request.done:
            self._asked()
        return True

    def _open_exchange(self, head: http1.Head) -> None:
        method, target = head.first[:2]
        kind = http1.operation(method, target, head.headers)
        self._busy = True
        self._method, self._target = method, target
        self._request = http1.request_body(head)
        self._record = self._relay.traffic.begin(head, kind)
        self._fault = self._relay.faults.pick(method, kind, target)
        self._record["fault"] = self._fault.how if self._fault else ""
        self._withheld = self._fault is not None and not self._fault.carried_out
        self._closing = head.closes
        self._answer = b""  # of the answer: its head until it is whole; all of it where a fault needs it
        self._response: http1.Body | None = None
        self._held: list[bytes] | None = None
        self._complete = False

    def _asked(self) -> None:
        """The whole request is here; what no server may see is answered now."""
        if self._withheld:
            self._misbehave()

    # -- the server's side

    def _forward(self, data: bytes) -> None:
        if self._withheld or not data:
            return
        if self._unsent is not None:
            self._unsent.append(data)
        elif self._upstream:
            self._upstream.write(data)
        else:
            self._unsent = [data]
            self.transport.pause_reading()
            self._task = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            transport, protocol = await self._loop.create_connection(lambda: Upstream(self), *self._relay.upstream)
        except OSError:
            self.reset()
            return
        if self.transport.is_closing():
            transport.abort()
            return
        self._upstream, self._protocol = transport, protocol
        transport.writelines(self._unsent or [])
        self._unsent = None
        self.transport.resume_reading()

    def upstream_lost(self, protocol: Upstream) -> None:
        if protocol is not self._protocol:
            return
        self._upstream = self._protocol = None
        if not self._busy or self._complete:
            return
        if self._response is not None and self._fault is None:
            self._closing = True
            self._completed()  # a body without a length ends with the connection; a shorter one is the client's to see
        else:
            self.reset()

    def answered(self, data: bytes) -> None:
        while data and self._busy and self._response is None:
            self._answer += data
            data = self._read_head()
        if data and self._busy:
            self._read_body(data)

    def _read_head(self) -> bytes:
        """Read the answer's head; return what follows it, nothing while it is not whole."""
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return b""
        head, rest = http1.Head(self._answer[: end + 4]), self._answer[end + 4 :]
        if head.status < 200:
            self.transport.write(head.raw)
            self._answer = b""
            return rest
        self._record["status"] = head.status
        self._response = http1.response_body(head, self._method)
        self._closing = self._closing or head.closes
        self._answer = head.raw
        self._head_size = len(head.raw)
        if self._relay.delay and self._fault is None:
            self._hold()
        if self._fault is None:
            self._send(head.raw)
        if self._response.done:
            self._completed()
            return b""
        return rest

    def _read_body(self, data: bytes) -> None:
        assert self._response is not None
        taken = self._response.feed(data)
        self._record["received"] += taken
        if self._fault is None:
            self._send(data[:taken])
        else:
            self._answer += data[:taken]
        if self._response.done:
            self._completed()

    def _completed(self) -> None:
        self._complete = True
        if self._fault is not None:
            self._misbehave()
        elif self._held is None:
            self._finish()

    # -- the answer on its way to the client

    def _hold(self) -> None:
        self._held = []
        # The loop rounds its waits up to whole milliseconds.
        self._timer = self._loop.call_later(max(0.0, self._relay.delay - 0.0007), self._release)

    def _send(self, data: bytes) -> None:
        if self._held is None:
            self.transport.write(data)
            return
        self._held.append(data)
        if self._upstream and len(self._held) == 16:  # a big body: no need to keep all of it
            self._upstream.pause_reading()

    def _release(self) -> None:
        held, self._held = self._held or [], None
        self.transport.writelines(held)
        if self._complete:
            self._finish()
        elif self._upstream:
            self._upstream.resume_reading()

    def _finish(self) -> None:
        self._end_exchange()
        if self._closing or not self._request.done:
            self.transport.close()
        elif self._incoming:
            self._advance()

    def _end_exchange(self) -> None:
        if self._busy:
            self._busy = False
            self._relay.traffic.end(self._record)

    # -- faults

    def _misbehave(self) -> None:
        assert self._fault is not None
        act = self._faulty_answers().get(self._fault.name, self._answer_instead)
        act()

    def _faulty_answers(self) -> dict[str, Callable[[], None]]:
        return {"reset": self.reset, "hang": self._hang, "slow_body": self._trickle, "truncate": self._truncate}

    def _answer_instead(self) -> None:
        assert self._fault is not None
        self._record["status"] = faults.ANSWERS[self._fault.name][0]
        self._answer = faults.answer(self._fault.name, self._method, self._target)
        self._complete = True
        if self._relay.delay:
            self._hold()
        self._send(self._answer)
        if self._held is None:
            self._finish()

    def _hang(self) -> None:
        assert self._fault is not None
        self._record["status"] = 0
        self._timer = self._loop.call_later(self._fault.seconds, self.reset)

    def _truncate(self) -> None:
        body = self._answer[self._head_size :]
        self.transport.write(self._answer[: self._head_size] + body[: len(body) // 2])
        self.transport.close()

    def _trickle(self) -> None:
        head, body = self._answer[: self._head_size], self._answer[self._head_size :]
        step = max(1, -(-len(body) // _SLICES))
        self._slices = [head, *(body[start : start + step] for start in range(0, len(body), step))]
        self._next_slice()

    def _next_slice(self) -> None:
        assert self._fault is not None
        self.transport.write(self._slices.pop(0))
        if self._slices:
            self._timer = self._loop.call_later(self._fault.seconds / _SLICES, self._next_slice)
        else:
            self._finish()

    def reset(self) -> None:
        """End the client's connection with RST: whatever it waits for will not come."""
        if self._busy:
            self._record["status"] = 0
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
