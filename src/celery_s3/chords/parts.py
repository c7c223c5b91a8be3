"""The line of JSON with which each object of a chord begins."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse"]


def parse(line: bytes) -> Any:
    """What a line says.

    Raises:
        ValueError: it is no JSON, and nothing else whatever the line holds.
    """
    try:
        return json.loads(line)
    except RecursionError as exc:
        raise ValueError("JSON nested too deeply") from exc
