"""``make demo``: real servers and a real worker on this machine, what they do, and what it costs.

Run it with ``python -m celery_s3.dev.demo``; it needs ``pip install 'celery-s3[demo]'``.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec

__all__ = ["main"]

_NEEDS = ("rich", "moto", "flask", "pycurl")


def main() -> int:
    """Run the demo; 0 where all of it was shown."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}: pip install 'celery-s3[demo]'", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, _: sys.exit(128 + signum))
    from celery_s3.dev.demo_run import run  # it imports what has just been looked for

    try:
        return run()
    except BrokenPipeError:  # `make demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
