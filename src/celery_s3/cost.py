"""Requests and bytes → dollars: pure arithmetic over a dated price table (``prices.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path

from .errors import ConfigurationError

__all__ = ["Prices", "price_table", "requests_cost", "storage_cost"]

#: The verbs that are billed, by what they are billed as.
_BILLED_AS = {
    "PUT": "put",
    "COPY": "put",
    "POST": "put",
    "LIST": "put",
    "GET": "get",
    "HEAD": "get",
    "DELETE": None,
    "DELETE_OBJECTS": None,
}


@dataclass(frozen=True, slots=True)
class Prices:
    """One storage class: dollars per 1,000 requests, and per GB and month."""

    title: str
    put: float
    get: float
    storage: float
    date: date
    source: str


@cache
def price_table(file: Path | None = None) -> Mapping[str, Prices]:
    """The price tables by name: the list prices that ship with the package, or those of another TOML file.

    Raises:
        ConfigurationError: the file cannot be read, or a price in it is missing or no number.
    """
    try:
        text = file.read_text() if file else resources.files(__package__).joinpath("prices.toml").read_text()
        table = tomllib.loads(text)
        common = {"date": table["date"], "source": str(table["source"])}
        return {
            name: Prices(str(row["title"]), float(row["put"]), float(row["get"]), float(row["storage"]), **common)
            for name, row in table.items()
            if isinstance(row, dict) and "storage" in row
        }
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(
            f"The price table {file} is not usable: {exc!r}. See the package's prices.toml for the form."
        ) from exc


def requests_cost(requests: Mapping[str, int], prices: Prices) -> float:
    """The dollars that so many requests by verb cost.

    Raises:
        KeyError: a verb that has no price.
    """
    total = 0.0
    for verb, count in requests.items():
        billed_as = _BILLED_AS[verb]
        if billed_as is not None:
            total += count * float(getattr(prices, billed_as)) / 1000
    return total


def storage_cost(stored: float, days: float, prices: Prices) -> float:
    """The dollars that so many bytes cost over so many days (a month has 30)."""
    return stored / 2**30 * prices.storage * days / 30
