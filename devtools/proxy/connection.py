"""The proxy's connections: a client's, and behind each one to the server; h11 speaks HTTP/1.1 on both."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import h11

from . import faults
from .operations import headers_of, without_preconditions
from .quirks import Asked, Quirks, Told, as_events
from .traffic import Traffic

__all__ = ["Client", "Relay"]

#: The most bytes that a head may have, and that are read of a body at once.
_BUFFER = 2**18
#: Into how many pieces a slow body is cut.
_SLICES = 10

_Take = Callable[[h11.Event], Awaitable[None]]


@dataclass
class Relay:
    """What all connections share: where to, how, and what has passed."""

    upstream: tuple[str, int]
    secret_key: str
    delay: float = 0.0
    strip_preconditions: bool = False
    quirks: Quirks = field(default_factory=Quirks)
    faults: faults.Faults = field(default_factory=faults.Faults)
    traffic: Traffic = field(default_factory=Traffic)
    clients: set[Client] = field(default_factory=set)


class Peer:
    """Whoever is at the other end of a connection; ``role`` is ours."""

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER], streams: tuple[Any, Any]) -> None:
        self._http = h11.Connection(role, max_incomplete_event_size=_BUFFER)
        self._reader: asyncio.StreamReader = streams[0]
        self._writer: asyncio.StreamWriter = streams[1]

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more."""
        return self._reader.at_eof()

    @property
    def waits_for_100(self) -> bool:
        """Whether the body of its request comes only after ``100 Continue``."""
        return self._http.they_are_waiting_for_100_continue

    async def receive(self) -> Any:
        """The next event: a head, a part of a body, its end."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_BUFFER))
        return event

    async def send(self, event: h11.Event, pause: float | None = None) -> None:
        """Send an event of ours, no faster than the other side takes it; a byte every ``pause`` seconds."""
        sent = self._http.send(event) or b""
        for piece in [sent] if pause is None else [sent[at : at + 1] for at in range(len(sent))]:
            self._writer.write(piece)
            await self._writer.drain()
            if pause is not None:
                await asyncio.sleep(pause)

    def renew(self) -> bool:
        """Make ready for another request; False where one was broken off, or was to be the last."""
        with suppress(h11.LocalProtocolError):
            self._http.start_next_cycle()
            return True
        return False

    def close(self) -> None:
        """End the connection once everything is sent."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection with RST: whatever the other side waits for will not come."""
        connection = self._writer.get_extra_info("socket")
        if connection is not None and not self._writer.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        """End the connection, with what is not sent."""
        self._writer.transport.abort()


class Client(asyncio.StreamReaderProtocol):
    """One client's connection: one request at a time, in a task that ends with the connection."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(asyncio.StreamReader(_BUFFER), self._begin)
        self._relay = relay
        self._upstream: Peer | None = None

    def _begin(self, *streams: Any) -> None:
        self._client = Peer(h11.SERVER, streams)
        self._relay.clients.add(self)
        self._serving = asyncio.create_task(self._serve())

    def eof_received(self) -> bool:
        """The connection ends with the client's side of it, and does not stay half open."""
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client and stop serving it."""
        super().connection_lost(exc)
        self._relay.clients.discard(self)
        self._serving.cancel()

    def reset(self) -> None:
        """Break the client's connection."""
        self._client.reset()

    async def _serve(self) -> None:
        try:
            while isinstance(request := await self._client.receive(), h11.Request):
                await self._exchange(request)
                if not self._client.renew():
                    break
        except (OSError, h11.ProtocolError):  # of either side
            self.reset()
        finally:
            self._client.close()
            self._disconnect()

    async def _exchange(self, request: h11.Request) -> None:
        self._record = record = self._relay.traffic.begin(request)
        fault = self._relay.faults.pick(record["method"], record["kind"], record["target"])
        try:
            if fault is None and self._relay.quirks:
                await self._ask_oddly(request)
            elif fault is None:
                await self._ask(request, self._deliver)
            else:
                record["fault"] = fault.how
                await self._misbehave(fault, await self._hidden_answer(fault, request))
        finally:
            self._relay.traffic.end(record)

    async def _take_body(self, take: _Take) -> None:
        event = None
        while not isinstance(event, h11.EndOfMessage):
            event = await self._client.receive()
            if isinstance(event, h11.Data):
                self._record["sent"] += len(event.data)
            await take(event)

    async def _deliver(self, event: h11.Event) -> None:
        """Send a part of the answer to the client, the first one late."""
        if isinstance(event, h11.Response):
            if self._relay.delay:  # the loop rounds its waits up to whole milliseconds
                await asyncio.sleep(max(0.0, self._relay.delay - 0.0007))
            self._record["status"] = event.status_code
        await self._client.send(event)

    # -- the server's side

    async def _ask(self, request: h11.Request, take: _Take) -> None:
        """Send the request on, and take the answer as it comes, be it before the request's end."""
        upstream = await self._connected()
        if self._relay.strip_preconditions:
            request = without_preconditions(request, self._relay.secret_key)
        await upstream.send(request)
        upload = asyncio.create_task(self._upload(upstream))
        try:
            await self._take_answer(upstream, take)
        finally:
            upload.cancel()
        if not upstream.renew():
            self._disconnect()

    async def _upload(self, upstream: Peer) -> None:
        with suppress(OSError, h11.ProtocolError):  # who waits for the answer learns of it
            await self._take_body(upstream.send)

    async def _take_answer(self, upstream: Peer, take: _Take) -> None:
        event = None
        while not isinstance(event, h11.EndOfMessage):
            event = await upstream.receive()
            if isinstance(event, h11.InformationalResponse):
                await self._client.send(event)
                continue
            if isinstance(event, h11.Data):
                self._record["received"] += len(event.data)
            await take(event)

    async def _connected(self) -> Peer:
        if self._upstream is None or self._upstream.ended:
            self._disconnect()
            self._upstream = Peer(h11.CLIENT, await asyncio.open_connection(*self._relay.upstream, limit=_BUFFER))
        return self._upstream

    def _disconnect(self) -> None:
        if self._upstream:
            self._upstream.abort()
            self._upstream = None

    # -- faults

    async def _hidden_answer(self, fault: faults.Fault, request: h11.Request) -> Sequence[h11.Event]:
        """The server's answer, which the client does not get as it is; none where the request is withheld."""
        answer: list[h11.Event] = []
        if fault.carried_out:
            await self._ask(request, _kept_in(answer))
        else:
            answer += await self._whole_body()
        return answer

    async def _whole_body(self) -> list[h11.Event]:
        if self._client.waits_for_100:
            await self._client.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        events: list[h11.Event] = []
        await self._take_body(_kept_in(events))
        return events

    async def _ask_oddly(self, request: h11.Request) -> None:
        """Answer a request as a server with quirks would."""
        quirks, record = self._relay.quirks, self._record
        body = _data(await self._whole_body())
        asked = Asked(record["method"], record["kind"], record["target"], headers_of(request), body)
        told = quirks.answer(asked)
        if told is None:
            told = quirks.tell(asked, await self._told(quirks.ask(asked, self._relay.secret_key)))
        for event in as_events(told):
            await self._deliver(event)

    async def _told(self, asked: Asked) -> Told:
        upstream = await self._connected()
        answer: list[Any] = []
        headers = list(asked.without("expect").headers.items())
        await upstream.send(h11.Request(method=asked.method, target=asked.target, headers=headers))
        await upstream.send(h11.Data(data=asked.body))
        await upstream.send(h11.EndOfMessage())
        await self._take_answer(upstream, _kept_in(answer))
        if not upstream.renew():
            self._disconnect()
        return Told(answer[0].status_code, headers_of(answer[0]), _data(answer))

    async def _misbehave(self, fault: faults.Fault, answer: Sequence[h11.Event]) -> None:
        match fault.name:
            case "reset":
                self.reset()
            case "hang":
                await asyncio.sleep(fault.seconds)
                self.reset()
            case "truncate":
                for event in faults.cut(answer, 2)[:2]:
                    await self._deliver(event)
            case "alter":
                for event in faults.altered(answer):
                    await self._deliver(event)
            case "slow_body":
                head, *slices, end = faults.cut(answer, _SLICES)
                await self._deliver(head)
                for event in slices:
                    await asyncio.sleep(fault.seconds / _SLICES)
                    await self._deliver(event)
                await self._deliver(end)
            case "dribble" | "dribble_body" as how:
                for event in answer:
                    whole = how == "dribble_body" and isinstance(event, h11.Response)
                    await self._client.send(event, None if whole else fault.seconds)
            case name:
                for event in faults.answer(name, self._record["method"], self._record["target"]):
                    await self._deliver(event)


def _kept_in(events: list[Any]) -> _Take:
    async def keep(event: h11.Event) -> None:
        events.append(event)

    return keep


def _data(events: Sequence[Any]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, h11.Data))
