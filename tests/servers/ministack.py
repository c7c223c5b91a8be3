"""ministack: AWS' services emulated in memory, after LocalStack's community edition."""

from __future__ import annotations

import sys

from celery_s3.dev.process import ServerNotStarted

from .base import SERVERS, Kind, RealServer

INSTALL = "pip: ministack"


class Ministack(RealServer):
    """ministack; it does not check signatures."""

    def _run(self) -> None:
        _installed()
        variables = {"PYTHONPATH": str(SERVERS), "GATEWAY_PORT": str(self.ports[0]), "MINISTACK_HOST": "127.0.0.1"}
        variables |= {"SERVICES": "s3", "TMPDIR": str(self.folder)}
        self._child([sys.executable, "-m", "ministack.app"], variables=variables)


def _installed() -> str:
    found = sorted(SERVERS.glob("ministack-*.dist-info"))
    if not found:
        raise ServerNotStarted(f"ministack is not in {SERVERS}: {INSTALL}")
    return found[-1].name.removesuffix(".dist-info").partition("-")[2]


KIND = Kind(
    name="ministack",
    title="ministack",
    install=INSTALL,
    make=Ministack,
    version=_installed,
    lacks={"one time": ""},
    failing={"test_tags": "a HEAD does not tell the number of tags"},
)
