"""``make demo``: real servers and a real worker on this machine, what they do, and what it costs.

Without make: ``pip install -e '.[demo]'``, then ``python -m devtools.demo``, both in the checkout.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .screen import Screen
    from .stage import Stage

__all__ = ["main"]

_NEEDS = ("rich", "h11", "moto", "flask", "pycurl")


def main() -> int:
    """Run the demo: 0 where all of it was shown, 130 after Ctrl-C, else 1."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}: pip install -e '.[demo]'", file=sys.stderr)
        return 1
    for name in ("SIGTERM", "SIGHUP"):
        _set_signal(name, lambda number, _: sys.exit(128 + number))
    try:
        return _run()
    except KeyboardInterrupt:  # before anything was started
        return 130
    except BrokenPipeError:  # of `make demo | head`; whatever is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run() -> int:
    # not before it is known that what they import is there
    from .screen import Screen
    from .stage import Stage, isolate

    isolate()
    screen, stage = Screen(), Stage()
    code = 1
    try:
        code = _attempt(stage, screen)
    finally:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a second Ctrl-C would leave half of it behind
            _set_signal(name, signal.SIG_IGN)
        left = stage.close()
    return _farewell(screen, code, left)


def _attempt(stage: Stage, screen: Screen) -> int:
    """The show; whatever goes wrong is told with its remedy."""
    from celery_s3.dev.process import ServerNotStarted

    from .run import SETTINGS, show

    try:
        show(stage, screen)
    except KeyboardInterrupt:
        screen.failed("Interrupted.")
        return 130
    except SystemExit as exc:
        screen.failed("Terminated.")
        return int(exc.code or 1)
    except ServerNotStarted as exc:
        screen.failed(f"The demo cannot run here. {exc}")
        screen.say("\nWith a bucket of your own there is nothing to start: put this into your celeryconfig.py")
        screen.listing(SETTINGS)
        screen.say("and go on with docs/quickstart.md.")
        return 1
    except BrokenPipeError:
        raise
    except Exception as exc:  # noqa: BLE001 (the user's screen: the message and the worker's log say more than a traceback)
        screen.failed(f"The demo failed: {type(exc).__name__}: {exc}", stage.log_tail())
        return 1
    return 0


def _farewell(screen: Screen, code: int, left: list[str]) -> int:
    if left:
        screen.failed(f"Left behind: {', '.join(left)}")
        return code or 1
    screen.say("\nServers, proxy and worker are stopped, their files removed.", "dim")
    return code


def _set_signal(name: str, handler: object) -> None:
    if hasattr(signal, name):  # Windows has no SIGHUP
        signal.signal(getattr(signal, name), handler)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
