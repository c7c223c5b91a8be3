"""The demo's screen: colours and a moving bar on a terminal, plain lines without one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from celery_s3.cost import Prices
from celery_s3.dev.demo_scenes import GROUP, Outcome, Scene

__all__ = ["Row", "Screen"]

#: Columns that are used where there is no terminal, and at most.
_WIDTH = 100
_NARROW = 96
_VERBS = ("PUT", "GET", "HEAD", "DELETE")


@dataclass(frozen=True)
class Row:
    """One line of the table; ``theirs`` is of Celery's own backend, costs are dollars for a million tasks."""

    outcome: Outcome
    ours: Counter[str]
    our_cost: float
    theirs: Counter[str]
    their_cost: float
    their_seconds: float


class Screen:
    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        console = Console(highlight=False)
        width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
        self.console = Console(highlight=False, width=width, soft_wrap=False)
        self._live = self.console.is_terminal

    def say(self, text: str = "", style: str = "") -> None:
        self.console.print(Text(text), style=style)

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text), style="bold")

    def done(self, what: str, detail: str, aside: str = "") -> None:
        """A line with a tick: what, in a column of its own, then the detail, then something less important."""
        line = Text("  ").append("✓", "green").append(f" {what:<14}", "bold").append(detail)
        self.console.print(line.append(f"  {aside}" if aside else "", "dim"))

    def listing(self, lines: Iterable[str]) -> None:
        """Lines to read or paste, as they are."""
        for line in lines:
            self.console.print(Text(f"    {line}"), style="cyan", soft_wrap=True)

    def failed(self, message: str, log: str = "") -> None:
        self.console.print()
        self.console.print(Text(message), style="bold red", soft_wrap=True)
        if log:
            self.console.print(Text(f"\nThe end of the worker's log:\n{log}"), soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something is under way; nothing where there is no terminal."""
        if not self._live:
            yield
            return
        with self._moving(Spinner("dots", Text(f"{text} …", style="dim"))):
            yield

    @contextmanager
    def playing(self, scene: Scene) -> Iterator[Bar]:
        """While a scene runs; the bar is for the group."""
        bar = Bar(self.console, scene)
        if not self._live:
            yield bar
            return
        with self._moving(bar):
            yield bar

    def _moving(self, renderable: Bar | Spinner) -> Live:
        return Live(renderable, console=self.console, transient=True, refresh_per_second=15)

    def outcome(self, outcome: Outcome) -> None:
        state, result = outcome.ended.state, outcome.ended.result
        said = state if state == result else f"{state}: {result}"
        self.done(outcome.scene.title, outcome.scene.says, "")
        self.console.print(Text(f"{'':19}→ {said}").append(f"  {outcome.seconds:.2f} s", "dim"))

    def table(self, rows: Sequence[Row]) -> None:
        narrow = self.console.width < _NARROW
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
        for name in ("\nTask", "\nState", "\nResult"):
            table.add_column(name, overflow="fold")
        for name in ("celery-s3", "Celery's own s3"):
            table.add_column(f"{name}\nrequests", no_wrap=not narrow)
            table.add_column("\n$ / million", justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*_cells(row))
        self.console.print(table)


def _cells(row: Row) -> tuple[Text, ...]:
    ended = row.outcome.ended
    colour = {"SUCCESS": "green", "FAILURE": "red"}.get(ended.state.split()[-1], "dim")
    return (
        Text(row.outcome.scene.title, "bold"),
        Text(ended.state, colour),
        Text(ended.result),
        Text(_requests(row.ours)),
        Text(f"{row.our_cost:.2f}", "green"),
        Text(_requests(row.theirs), "dim"),
        Text(f"{row.their_cost:.2f}", "dim"),
    )


def _requests(requests: Counter[str]) -> str:
    names = [*_VERBS, *sorted(set(requests) - set(_VERBS))]
    return ", ".join(f"{requests[name]} {name}" for name in names if requests[name]) or "none"


class Bar:
    """How many of the group are sent and finished: a bar on a terminal, a line for every quarter without one."""

    def __init__(self, console: Console, scene: Scene) -> None:
        self._console = console
        self._scene = scene
        self._sent = self._finished = 0
        self._spinner = Spinner("dots", Text(f"{scene.says} …", style="dim"))

    def update(self, sent: int, finished: int) -> None:
        quarter = finished * 4 // GROUP > self._finished * 4 // GROUP
        self._sent, self._finished = sent, finished
        if quarter and not self._console.is_terminal:
            self._console.print(f"    {self._scene.title}: {finished} of {GROUP} finished")

    def __rich__(self) -> Table | Spinner:
        if not self._sent:
            return self._spinner
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=GROUP, completed=self._finished, width=40)
        grid.add_row(f"    {self._scene.title}", bar, f"{self._finished} finished", f"of {self._sent} sent")
        return grid
