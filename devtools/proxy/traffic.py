"""What passed the proxy: one record per request, and the counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import h11

from .operations import headers_of, operation

__all__ = ["Traffic"]

_KEPT_HEADERS = ("if-match", "if-none-match", "range", "host", "content-type", "expect", "user-agent")
_SECRET_HEADERS = ("x-amz-security-token", "customer-key")


class Traffic:
    """Every request since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every request so far."""
        self.kinds: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self.records: list[dict[str, Any]] = []
        self.peak = 0
        self._under_way: set[int] = set()

    def begin(self, request: h11.Request) -> dict[str, Any]:
        """Count a request; its record is filled in as the answer comes."""
        method, target, headers = request.method.decode(), request.target.decode("latin-1"), headers_of(request)
        kind = operation(method, target, headers)
        record = {
            "method": method,
            "target": target,
            "kind": kind,
            "headers": _kept(headers),
            "status": 0,
            "fault": "",
            "sent": 0,
            "received": 0,
            "time": time.time(),
        }
        self.methods[method] += 1
        self.kinds[kind] += 1
        self.records.append(record)
        self._under_way.add(id(record))
        self.peak = max(self.peak, len(self._under_way))
        return record

    def end(self, record: dict[str, Any]) -> None:
        """The request is no longer under way."""
        self._under_way.discard(id(record))


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    kept = {}
    for name, value in headers.items():
        if name.startswith("x-amz-") or name in _KEPT_HEADERS:
            kept[name] = "********" if name.endswith(_SECRET_HEADERS) else value
        elif name == "authorization" and value.count("/") >= 4:
            kept["region"] = value.split("/")[2]
    return kept
