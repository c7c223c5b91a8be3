"""Requests and bytes → dollars: pure arithmetic over a dated price table (``prices.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path

from celery_s3.errors import ConfigurationError

__all__ = [
    "Item",
    "Prices",
    "bill",
    "list_prices",
    "price_table",
    "prices_name",
    "requests_cost",
    "storage_cost",
    "transfer_cost",
]

GB = 2**30

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
    """One storage class: dollars per 1,000 requests, per GB and month, and per GB that requests move."""

    title: str
    put: float
    get: float
    storage: float
    date: date
    source: str
    upload: float = 0.0
    download: float = 0.0

    def per_thousand(self, verb: str) -> float:
        """The dollars for 1,000 requests.

        Raises:
            KeyError: the verb has no price.
        """
        billed_as = _BILLED_AS[verb]
        return 0.0 if billed_as is None else float(getattr(self, billed_as))


@cache
def price_table(file: Path | None = None) -> Mapping[str, Prices]:
    """The price tables by name: the list prices that ship with the package, or those of another TOML file.

    Raises:
        ConfigurationError: the file cannot be read, has no table, or a price in it is missing or no price.
    """
    try:
        text = (file or resources.files(__package__).joinpath("prices.toml")).read_text(encoding="utf-8")
        content = tomllib.loads(text)
        tables = {name: _prices(row, content) for name, row in content.items() if isinstance(row, dict)}
        if not tables:
            raise ValueError("it has no table")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(
            f"The price table {file} is not usable: {exc!r}. See celery_s3/costs/prices.toml for the form."
        ) from exc
    return tables


def prices_name(bucket: str) -> str:
    """Which of the shipped tables a bucket is billed by: its name tells Express, and nothing else."""
    return "s3-express" if bucket.endswith("--x-s3") else "s3-standard"


def list_prices(bucket: str) -> Prices:
    """The shipped list prices of a bucket's storage class."""
    return price_table()[prices_name(bucket)]


def _prices(row: Mapping[str, object], content: Mapping[str, object]) -> Prices:
    names = ("put", "get", "storage", "upload", "download")
    numbers = {name: _price(name, row[name]) for name in names if name in row or name in names[:3]}
    when = content["date"]
    if not isinstance(when, date):
        raise TypeError("date is not a date, as 2026-01-01")
    return Prices(title=str(row["title"]), date=when, source=str(content["source"]), **numbers)


def _price(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}, not a number of dollars")
    return float(value)


def requests_cost(requests: Mapping[str, float], prices: Prices) -> float:
    """The dollars that so many requests by verb cost.

    Raises:
        KeyError: a verb that has no price.
    """
    return sum(count * prices.per_thousand(verb) / 1000 for verb, count in requests.items())


def transfer_cost(up: float, down: float, prices: Prices) -> float:
    """The dollars for moving so many bytes by requests, inside the region."""
    return (up * prices.upload + down * prices.download) / GB


def storage_cost(stored: float, days: float, prices: Prices) -> float:
    """The dollars that so many bytes cost over so many days (a month has 30)."""
    return stored / GB * prices.storage * days / 30


@dataclass(frozen=True, slots=True)
class Item:
    """What was asked with one verb, and what it cost.

    Attributes:
        throttles: requests that were told to slow down.
        conflicts: writes that met another writer: refused by their precondition, or while another was in flight.
    """

    verb: str
    requests: int
    retries: int
    throttles: int
    conflicts: int
    bytes_up: int
    bytes_down: int
    dollars: float


def bill(counted: Mapping[str, Mapping[str, int]], prices: Prices) -> list[Item]:
    """What a process has asked, as its ``app.backend.tally.snapshot()`` has it, verb by verb."""
    return [
        Item(
            verb=verb,
            requests=line["requests"],
            retries=line["retries"],
            throttles=line.get("Throttled", 0),
            conflicts=line.get("Conflict", 0) + line.get("PreconditionFailed", 0),
            bytes_up=line["bytes_up"],
            bytes_down=line["bytes_down"],
            dollars=requests_cost({verb: line["requests"]}, prices)
            + transfer_cost(line["bytes_up"], line["bytes_down"], prices),
        )
        for verb, line in counted.items()
    ]
