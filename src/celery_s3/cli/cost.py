"""``celery s3 cost``: what the requests cost, predicted or counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from celery_s3.backends.s3 import S3Backend
from celery_s3.costs.model import Deployment, Work, celery_own, celery_s3, cost_of
from celery_s3.costs.prices import Item, Prices, bill, price_table, prices_name, storage_cost
from celery_s3.costs.workers import ask_workers

from .command import command as s3_command
from .context import json_option, with_backend
from .output import data_size, print_json, print_table
from .query import between, duration

__all__ = ["command"]

DAY = 86_400

#: The backends by the names that the table shows, each with its model.
MODELS = {"celery-s3": celery_s3, "Celery's own s3": celery_own}


#: The largest `--wait` (seconds) times `--group` (members) that the model, which simulates every look, does in seconds.
_RECKONED = 500_000_000


class _Between(click.FloatRange):
    """A number in a range; NaN, which no comparison refuses, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


@s3_command("cost", example="--tasks 1000000 --wait 5s", needs_app=False)
@click.option(
    "--tasks",
    type=click.IntRange(1, 10**12),
    default=1_000_000,
    show_default=True,
    help="Tasks that store a result.",
)
@click.option(
    "--size", type=click.IntRange(0, 5 * 2**40), default=1024, show_default=True, help="Bytes of a stored result."
)
@click.option(
    "--fetch",
    type=_Between(0, 1),
    default=1.0,
    show_default=True,
    help="The share of results that a client fetches; with --chord, of the bodies' results.",
)
@click.option(
    "--wait",
    type=duration,
    callback=between(0, 86_400),
    default="0",
    show_default=True,
    help="How long the client waits in get(), up to 1d; 0: the result is there already.",
)
@click.option("--group", type=click.IntRange(0, 100_000), default=0, help="The tasks are fetched in groups of so many.")
@click.option("--chord", type=click.IntRange(0, 10_000), default=0, help="They are the headers of chords of so many.")
@click.option(
    "--keep",
    type=duration,
    callback=between(0, 36_500 * DAY),
    default="1d",
    show_default=True,
    help="How long until it is deleted.",
)
@click.option(
    "--prices",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Other prices than S3's in us-east-1; the form is that of celery_s3/costs/prices.toml.",
)
@click.option("--measured", is_flag=True, help="Ask running workers instead what they have asked of S3.")
@click.option(
    "--timeout",
    type=duration,
    callback=between(0.1, 86_400),
    default="2s",
    show_default=True,
    help="How long to wait for the workers.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, file: Path | None, measured: bool, timeout: float, as_json: bool, **shape: Any
) -> None:
    """Tell what requests and storage cost.

    For a deployment of the given shape: this backend, Celery's own `s3` backend and S3 Express, line by line. That
    makes no request and needs no app. Data that leaves the region is billed apart.

    With --measured: what the running workers have asked of S3 since they started, by verb, and what it cost. They are
    asked by remote control, which SQS does not have; there, each logs the same when it ends.
    """
    prices = price_table(file)
    shape["keep"] /= DAY
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if measured and given & shape.keys():
        raise click.UsageError("--measured tells what was asked: it takes no shape.")
    if not measured and "timeout" in given:
        raise click.UsageError("--timeout is for --measured.")
    if measured:
        _measured(prices, timeout, as_json)
    elif shape["group"] and shape["chord"]:
        raise click.UsageError("--group and --chord are two shapes: ask for one at a time.")
    elif shape["group"] * shape["wait"] > _RECKONED:
        raise click.UsageError(f"--group times --wait is more than {_RECKONED:,}: that takes too long to reckon.")
    else:
        _predicted(Deployment(**shape), prices, as_json)


# -- predicted


def _predicted(shape: Deployment, tables: Mapping[str, Prices], as_json: bool) -> None:
    first, *others = tables.values()
    bills = [(name, prices, model(shape)) for prices, (name, model) in zip((first, first), MODELS.items(), strict=True)]
    bills += [("celery-s3", prices, celery_s3(shape)) for prices in others]
    if as_json:
        print_json({"shape": asdict(shape), "bills": [_record(shape, *one) for one in bills]})
        return
    click.echo(f"{_describe(shape)}\nList prices of {first.date}: {first.source}\n")
    rows = [row for name, prices, work in bills for row in _rows(f"{name} on {prices.title}", shape, prices, work)]
    print_table(("", "REQUESTS", "", "PER MILLION", "DOLLARS"), rows)
    million = 1_000_000 / shape.tasks
    totals = (
        f"{_money(cost_of(work, shape, prices) * million)} {name} on {prices.title}" for name, prices, work in bills
    )
    click.echo(f"\nA million such tasks: {', '.join(totals)}.")


def _describe(shape: Deployment) -> str:
    what = f"{shape.tasks:,} tasks"
    if shape.chord:
        what += f" in the headers of {shape.chords:,.0f} chords"
    what += f", results of {data_size(shape.size)} kept for {shape.keep:g} d"
    if not shape.fetch:
        return f"{what}, never fetched."
    fetched = "chord bodies" if shape.chord else f"results, in groups of {shape.group}" if shape.group else "results"
    when = f"after a wait of {shape.wait:g} s" if shape.wait else "once they are there"
    return f"{what}; {shape.fetch:.0%} of the {fetched} fetched {when}."


def _rows(title: str, shape: Deployment, prices: Prices, work: Sequence[Work]) -> Iterator[tuple[str, ...]]:
    yield title, "", "", "", _money(cost_of(work, shape, prices))
    for one in work:
        million = f"${1000 * prices.per_thousand(one.verb):,.2f}"
        yield f"  {one.what}", f"{one.requests:,.0f}", one.verb, million, _money(one.dollars(prices))
    stored = shape.results * shape.size
    price = f"${prices.storage:g} per GB, month"
    yield (
        f"  storage for {shape.keep:g} d",
        data_size(stored),
        "",
        price,
        _money(storage_cost(stored, shape.keep, prices)),
    )


def _money(dollars: float) -> str:
    if dollars >= 1 or not dollars:
        return f"${dollars:,.2f}"
    return f"${dollars:.4f}" if dollars >= 0.0001 else "<$0.0001"


def _record(shape: Deployment, name: str, prices: Prices, work: Sequence[Work]) -> dict[str, Any]:
    return {
        "backend": name,
        "prices": asdict(prices),
        "lines": [{**asdict(one), "dollars": one.dollars(prices)} for one in work],
        "storage": storage_cost(shape.results * shape.size, shape.keep, prices),
        "total": cost_of(work, shape, prices),
    }


# -- measured

_TITLES = ("WORKER", "VERB", "REQUESTS", "RETRIES", "THROTTLED", "CONFLICTS", "UP", "DOWN", "DOLLARS")


@with_backend
def _measured(backend: S3Backend, tables: Mapping[str, Prices], timeout: float, as_json: bool) -> None:
    prices = tables.get(prices_name(backend.settings.bucket)) or next(iter(tables.values()))
    answers = ask_workers(backend.app, timeout)
    bills = {name: bill(answer.get("counted", {}), prices) for name, answer in sorted(answers.items())}
    if as_json:
        print_json([_answered(name, answers[name], items) for name, items in bills.items()])
    elif answers:
        rows = [_row(name, item) for name, items in bills.items() for item in items]
        print_table(_TITLES, rows)
        total = sum(item.dollars for items in bills.values() for item in items)
        click.echo(f"{_money(total)} at the list price of {prices.title}, {prices.date}.")
    _remarks(answers, timeout)


def _row(name: str, item: Item) -> tuple[str, ...]:
    numbers = (item.requests, item.retries, item.throttles, item.conflicts)
    sizes = (data_size(item.bytes_up), data_size(item.bytes_down))
    return name, item.verb, *(f"{number:,}" for number in numbers), *sizes, _money(item.dollars)


def _answered(name: str, answer: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    known = {key: answer.get(key) for key in ("pid", "uncounted", "error")}
    return {"worker": name, **known, "counted": answer.get("counted", {}), "items": [asdict(item) for item in items]}


def _remarks(answers: Mapping[str, Mapping[str, Any]], timeout: float) -> None:
    """What is missing in the answers; the command fails then."""
    for name, answer in sorted(answers.items()):
        if answer.get("error"):
            click.echo(f"{name}: {answer['error']}.", err=True)
        if answer.get("uncounted"):
            click.echo(
                f"{name}: {answer['uncounted']} of its processes are not counted here. They were started by spawn, or"
                " before the backend was made (`celery worker -q`); each logs its requests when it ends.",
                err=True,
            )
    if not answers:
        raise click.ClickException(
            f"No worker answered within {timeout:g} s. Is one running, with this app and backend, and with remote"
            " control (`worker_enable_remote_control`)?"
        )
    if any(answer.get("error") or answer.get("uncounted") for answer in answers.values()):
        raise SystemExit(1)
