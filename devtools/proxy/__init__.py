"""A proxy for benchmarks and tests: delays answers, counts requests, breaks what it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from celery_s3.dev.process import EmbeddedServer, S3Server, ServerNotStarted, environment
from devtools import ROOT

from .faults import FAULTS

__all__ = ["Proxy", "Record"]


@dataclass(frozen=True, slots=True)
class Record:
    """One request that passed the proxy.

    Attributes:
        kind: the S3 operation, as ``PUT``, ``LIST``, ``DeleteObjects``, ``CreateBucket``.
        target: path and query as the client sent them, still percent-encoded.
        status: what the client was answered; 0 while it waits, and where no answer came.
        fault: the injected fault, else empty.
        headers: the request's preconditions, range and ``x-amz-*`` headers (secrets masked), names in lower case,
            and ``region``, which the signature names.
        sent, received: bytes of the request's body, and of the server's answer.
        time: when the request came, in seconds since the epoch.
    """

    method: str
    target: str
    kind: str
    status: int
    fault: str
    sent: int
    received: int
    time: float
    headers: Mapping[str, str] = field(default_factory=dict)


class Proxy(EmbeddedServer):
    """An HTTP/1.1 reverse proxy on a free port of 127.0.0.1, in a process of its own::

        with SeaweedFS() as server, Proxy(server, delay=0.02) as proxy:
            app.conf.s3_backend_settings = proxy.settings()
            proxy.fail("PUT", "slow_down", times=3)
            ...
            print(proxy.counts())

    Heads and bodies pass as they are, streamed; the Host header too, so signatures stay valid.
    ``Expect: 100-continue`` is answered by the server, at once.

    Arguments:
        upstream: the server behind it, or its URL (``http`` only). Of a server, :meth:`settings` takes
            bucket and credentials.
        delay: seconds that every answer waits before its first byte leaves.
        strip_preconditions: hide If-Match and If-None-Match from the server, so that it behaves like one
            without conditional writes; requests that signed them are signed anew (the server's keys are known).
        quirks: names of :data:`devtools.proxy.quirks.QUIRKS`: odd answers that other servers are known for.
        tls: certificate and key file (PEM); the proxy then speaks HTTPS.
    """

    def __init__(
        self,
        upstream: S3Server | str,
        delay: float = 0.0,
        *,
        strip_preconditions: bool = False,
        quirks: Sequence[str] = (),
        tls: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    ) -> None:
        url = upstream if isinstance(upstream, str) else upstream.endpoint_url
        self._address = _address(url)
        self._delay = delay
        self._strip_preconditions = strip_preconditions
        self._quirks = list(quirks)
        self._tls = [os.fspath(file) for file in tls] if tls else None
        self._lock = threading.Lock()
        if isinstance(upstream, S3Server):
            self.access_key, self.secret_key = upstream.access_key, upstream.secret_key
            self.bucket, self.region = upstream.bucket, upstream.region

    def _launch(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "devtools.proxy.relay"],
            env=environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        port = self._tell(upstream=self._address, secret_key=self.secret_key, tls=self._tls)
        self.endpoint_url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        self.configure(delay=self._delay, strip_preconditions=self._strip_preconditions, quirks=self._quirks)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    # -- what it saw

    def counts(self) -> Counter[str]:
        """Requests since the last :meth:`reset`, by S3 operation."""
        return Counter(self._tell(do="counts")["kinds"])

    def methods(self) -> Counter[str]:
        """Requests since the last :meth:`reset`, by HTTP method."""
        return Counter(self._tell(do="counts")["methods"])

    def peak(self) -> int:
        """The largest number of requests under way at the same time since the last :meth:`reset`."""
        return int(self._tell(do="counts")["peak"])

    def records(self) -> list[Record]:
        """Every request since the last :meth:`reset`, in the order of arrival."""
        return [Record(**record) for record in self._tell(do="records")]

    def reset(self) -> None:
        """Forget what was counted."""
        self._tell(do="reset")

    # -- what it does

    def configure(
        self,
        *,
        delay: float | None = None,
        strip_preconditions: bool | None = None,
        quirks: Sequence[str] | None = None,
    ) -> None:
        """Change what was given at the start; ``None`` leaves it."""
        values = {"delay": delay, "strip_preconditions": strip_preconditions, "quirks": quirks}
        self._tell(do="configure", **{name: value for name, value in values.items() if value is not None})

    def fail(self, match: str, how: str, *, times: int = 1, after: int = 0, seconds: float = 60.0) -> None:
        """Inject a fault into requests to come.

        Arguments:
            match: a method or an operation, then perhaps a part of path and query:
                ``"PUT"``, ``"LIST"``, ``"GET some-key"``, ``"* some-key"``.
            how: a name of :data:`devtools.proxy.faults.FAULTS`: an answer (``slow_down``, ``internal_error``,
                ``conflict``, ``access_denied``, ``not_found`` …), ``reset`` or ``hang``, each also with ``_after``
                (the server carries the request out, its answer is lost); ``slow_body``, ``dribble``, ``dribble_body``,
                ``truncate``, ``alter``.
            times: how many requests it hits; -1: all until :meth:`heal`.
            after: how many matching requests pass before.
            seconds: how long ``hang`` lasts before the connection is reset, or ``slow_body`` takes; between
                two bytes of a ``dribble``.
        """
        if how not in FAULTS:
            raise ValueError(f"no such fault: {how!r}; there are {', '.join(sorted(FAULTS))}")
        self._tell(do="fail", match=match, how=how, times=times, after=after, seconds=seconds)

    def heal(self) -> None:
        """Take back every fault that :meth:`fail` asked for."""
        self._tell(do="heal")

    def down(self) -> ExitStack:
        """Reset every connection and refuse new ones until :meth:`up`; in a ``with``, until its end."""
        self._tell(do="down")
        until = ExitStack()
        until.callback(self.up)
        return until

    def up(self) -> None:
        """Take connections again, on the same port."""
        self._tell(do="up")

    def restore(self) -> None:
        """As after the start: no connection, count or fault, up, no delay, preconditions pass, no quirk."""
        self._tell(do="drop")
        self.heal()
        self.up()
        self.configure(delay=0.0, strip_preconditions=False, quirks=())
        self.reset()

    def _tell(self, **order: Any) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the proxy is not running")
        with self._lock:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            raise ServerNotStarted("the proxy's process ended; it has said why on standard error")
        return json.loads(answer)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the proxy needs a running server's http:// URL, not {url!r}")
    return parts.hostname, parts.port or 80
