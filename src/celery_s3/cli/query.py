"""What the commands about many results share: which results, what a query costs, and asking first."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any, TypeVar

import click
from celery import states

from celery_s3.backends.s3 import S3Backend
from celery_s3.costs.prices import list_prices, requests_cost
from celery_s3.operate.budget import FREE, Budget
from celery_s3.operate.inventory import Filter, Inventory
from celery_s3.settings import Settings

from .command import nearest
from .output import printable

__all__ = [
    "between",
    "confirm",
    "duration",
    "expensive",
    "filter_of",
    "filter_options",
    "inventory_of",
    "moment",
    "no_such_state",
    "place",
    "price",
    "yes_option",
]

_F = TypeVar("_F", bound=Callable[..., Any])

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"\d+(?:\.\d+)?|(?:\d+(?:\.\d+)?[smhdw])+")


def duration(text: str) -> float:
    """``90``, ``90s``, ``2h``, ``7d`` or ``1h30m`` in seconds; the type of an option."""
    if not _DURATION.fullmatch(text):
        raise click.BadParameter(f"{text!r} is no duration: write 90, 90s, 15m, 2h, 7d or 1h30m.")
    return sum(float(number) * _SECONDS[unit or "s"] for number, unit in re.findall(r"([\d.]+)([smhdw]?)", text))


def between(low: float, high: float) -> Callable[[click.Context, click.Parameter, float], float]:
    """A callback for an option of type :func:`duration` that must be so long, in seconds."""

    def check(ctx: click.Context, option: click.Parameter, seconds: float) -> float:
        if not low <= seconds <= high:
            raise click.BadParameter(f"{seconds:g} s is not from {low:g} to {high:,g} s.", ctx, option)
        return seconds

    return check


def moment(text: str) -> datetime:
    """A duration before now, or an ISO time (this machine's where it has no offset), in UTC; the type of an option."""
    try:
        if _DURATION.fullmatch(text):
            return datetime.now(UTC) - timedelta(seconds=duration(text))
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(f"{text!r} is no time: write 90s, 2h or 7d, or 2030-01-31T18:00.") from exc


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")

_FILTERS = (
    click.option("--state", "states", multiple=True, help="Only results in this state; may be given again."),
    click.option("--task", default="", help="Only results of this task; * and ? stand for any part of its name."),
    click.option("--since", type=moment, help="Only results stored since then: 90s, 2h or 7d ago, or an ISO time."),
    click.option("--older-than", "before", type=moment, help="Only results stored before then; as --since."),
)


def filter_options(command: _F) -> _F:
    """The options whose values :func:`filter_of` takes."""
    return reduce(lambda fn, option: option(fn), reversed(_FILTERS), command)


def place(backend: S3Backend) -> str:
    """Where the results are, as ``s3://bucket/base``."""
    return f"s3://{backend.settings.bucket}/{printable(backend.settings.base)}"


def no_such_state(backend: S3Backend, wanted: Filter) -> str:
    """A hint for who has named a state that Celery does not know: a task may have set it, or it is mistyped."""
    known = {state.casefold(): state for state in states.ALL_STATES}
    odd = sorted(wanted.states - known.keys())
    if not odd:
        return ""
    hints = [f"{printable(state.upper())}{nearest(state.upper(), sorted(states.ALL_STATES)) or ''}" for state in odd]
    return f"Nothing is in this state in {place(backend)}: {' '.join(hints)}"


def filter_of(states: tuple[str, ...], task: str, since: datetime | None, before: datetime | None) -> Filter:
    """Which results the options of :data:`filter_options` mean."""
    return Filter(frozenset(state.casefold() for state in states), task, since, before)


def inventory_of(backend: S3Backend, *, yes: bool) -> Inventory:
    """The results of a backend, and the budget that asks before there are many requests.

    Arguments:
        yes: tell what was spent instead of asking.
    """

    def ask(spent: Counter[str], share: float | None) -> None:
        told = _so_far(spent, share, backend.settings)
        if yes:
            click.echo(told, err=True)
        else:
            confirm(f"{told} Go on?")

    budget = Budget(backend.tally, ask)
    return Inventory(
        backend.store, backend.pool, backend.layout, budget, expires_at=backend.results.expires_at, files=backend.files
    )


def _so_far(spent: Counter[str], share: float | None, settings: Settings) -> str:
    told = f"This has taken {price(spent, settings)}"
    if not share:
        return f"{told}, and there is more; how much is not known."
    whole = Counter({verb: round(number / share) for verb, number in spent.items()})
    return f"{told}, for {share:.0%} of the results; all of them take about {price(whole, settings)}."


def price(requests: Mapping[str, int], settings: Settings) -> str:
    """So many requests by verb, and on Amazon's S3 their price, as ``12,000 requests ($0.0048)``."""
    text = f"{sum(requests.values()):,} requests"
    if not settings.on_aws:
        return text
    dollars = requests_cost(requests, list_prices(settings.bucket))
    return f"{text} (${dollars:.2f})" if dollars >= 1 else f"{text} (${dollars:.4f})"


def expensive(requests: Mapping[str, int]) -> bool:
    """Whether these are more requests than are made without telling, or asking, somebody."""
    return sum(requests.values()) > FREE


def confirm(question: str, *, number: int = 0, instead: str = "--yes") -> None:
    """Ask on a terminal; elsewhere an option should have been given.

    Arguments:
        number: ask for this number to be typed, where a yes is given too easily.
        instead: the option that says so beforehand.

    Raises:
        click.Abort: the answer is no.
        click.ClickException: there is nobody to ask.
    """
    if not _somebody_is_there():
        raise click.ClickException(f"{question} Nobody can be asked here: say {instead}.")
    if not number:
        click.confirm(question, abort=True, err=True)
    elif click.prompt(f"{question} Type {number} to go on", default="", show_default=False, err=True) != str(number):
        raise click.Abort


def _somebody_is_there() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
