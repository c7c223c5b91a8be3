"""The proxy's own process.

It takes its orders as lines of JSON on standard input, answers each with one on standard output,
and ends when its input does: with the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from typing import Any

from .connection import Client, Relay
from .faults import Fault
from .quirks import Quirks


class Door:
    """The port: open, or refusing connections while it stays ours."""

    def __init__(self, relay: Relay, tls: ssl.SSLContext | None) -> None:
        self._relay = relay
        self._tls = tls
        # Bound but never listening: it keeps the port while the listening socket is closed.
        self._keeper = _bound(0)
        self.port: int = self._keeper.getsockname()[1]
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Accept connections, if it does not do so already."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            listening = _bound(self.port)
            self._server = await loop.create_server(
                lambda: Client(self._relay), sock=listening, ssl=self._tls, backlog=1024
            )

    async def close(self) -> None:
        """Refuse new connections, and reset those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop()

    def drop(self) -> None:
        """Reset every connection."""
        for client in list(self._relay.clients):
            client.reset()


def _bound(port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only where the protocol is named; without it answers wait 40 ms for an ACK
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    return one


async def _obey(order: dict[str, Any], relay: Relay, door: Door) -> Any:
    match order.pop("do"):
        case "fail":
            relay.faults.add(Fault(**order))
        case "heal":
            relay.faults.clear()
        case "configure":
            if "quirks" in order:
                order["quirks"] = Quirks(order["quirks"])
            for name, value in order.items():
                setattr(relay, name, value)
        case "down":
            await door.close()
        case "up":
            await door.open()
        case "drop":
            door.drop()
        case "reset":
            relay.traffic.reset()
        case "records":
            return relay.traffic.records
        case "counts":
            return {"kinds": relay.traffic.kinds, "methods": relay.traffic.methods, "peak": relay.traffic.peak}
    return None


async def _serve() -> None:
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    setup = json.loads(await reader.readline())
    relay = Relay(tuple(setup["upstream"]), setup["secret_key"])
    door = Door(relay, _tls(setup["tls"]))
    await door.open()
    _say(door.port)
    while line := await reader.readline():
        _say(await _obey(json.loads(line), relay, door))


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _tls(files: list[str] | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


if __name__ == "__main__":
    asyncio.run(_serve())
