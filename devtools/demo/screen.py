"""The demo's screen: colours and a moving bar on a terminal, plain lines without one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from .scenes import Outcome

__all__ = ["Bar", "Screen"]

#: Columns that are used where there is no terminal, and at most.
_WIDTH = 100
#: Columns that the table takes where it need not be narrow.
_WIDE = 100


class Screen:
    """What the demo prints: on a terminal with colour and a moving bar, elsewhere 100 plain columns."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        console = Console()
        self.live = console.is_terminal
        width = min(console.width, _WIDTH) if self.live else _WIDTH
        self._console = Console(highlight=False, width=width)
        self.wide = width >= _WIDE

    def show(self, renderable: RenderableType = "") -> None:
        """Print anything that rich can print; an empty line by default."""
        self._console.print(renderable)

    def say(self, text: str, style: str = "") -> None:
        """Print a text in one of rich's styles."""
        self.show(Text(text, style))

    def heading(self, text: str) -> None:
        """Print a bold line below an empty one."""
        self.show()
        self.say(text, "bold")

    def started(self, what: str, detail: str, where: str) -> None:
        """Print that something runs: what, a detail of it, and where it answers."""
        self.show(_ticked(what).append(f"{detail:<32}").append(where, "dim"))

    def ended(self, outcome: Outcome) -> None:
        """Print a scene's call, its result, and the seconds that it took."""
        line = _ticked(outcome.scene.title).append(f"{outcome.scene.call:<38}").append(" → ", "dim")
        self.show(line.append(f"{outcome.ended.result:<11}", "cyan").append(f"{outcome.seconds:6.2f} s", "dim"))

    def listing(self, lines: Iterable[str]) -> None:
        """Lines to read or paste: never broken, whatever the width."""
        for line in lines:
            self._console.print(Text(f"    {line}", "cyan"), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a remark, indented by two columns."""
        self.show(Padding(Text(text, "dim"), (0, 0, 0, 2), expand=False))

    def failed(self, message: str, log: str = "") -> None:
        """Print why the demo stops, and the end of the worker's log where there is one."""
        self.show()
        self._console.print(Text(message, "bold red"), soft_wrap=True)
        if log:
            self._console.print(Text(f"\nThe end of the worker's log:\n{log}"), soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Bar]:
        """Show that something is under way, on a terminal."""
        bar = Bar(text)
        if not self.live:
            yield bar
            return
        with Live(bar, console=self._console, transient=True, refresh_per_second=12.5):
            yield bar


class Bar:
    """A spinner, and a bar once a group or chord moves; seen on a terminal only."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sent = self._finished = self._of = 0
        self._spinner = Spinner("dots", Text(text, "dim"))

    def moved(self, sent: int, finished: int, of: int) -> None:
        """So many of so many members are sent and finished."""
        self._sent, self._finished, self._of = sent, finished, of

    def __rich__(self) -> RenderableType:
        if not self._sent:
            return Padding(self._spinner, (0, 0, 0, 2))
        grid = Table.grid(padding=(0, 1))
        verb, count, style = ("finished", self._finished, "green") if self._finished else ("sent", self._sent, "cyan")
        bar = ProgressBar(total=self._of, completed=count, width=40, complete_style=style)
        grid.add_row(f"    {self._text}", bar, f"{count} of {self._of} {verb}")
        return grid


def _ticked(what: str) -> Text:
    return Text("  ").append("✓", "green").append(f" {what:<15}", "bold")
