"""ministack: AWS' services emulated in memory, after LocalStack's community edition."""

from __future__ import annotations

from pathlib import Path

from .base import Kind, RealServer, find, first_line

INSTALL = "pip: ministack"


class Ministack(RealServer):
    """ministack; it does not check signatures."""

    def _run(self) -> None:
        variables = {"GATEWAY_PORT": str(self.ports[0]), "MINISTACK_HOST": "127.0.0.1"}
        variables |= {"SERVICES": "s3", "TMPDIR": str(self.folder)}
        self._child([_python(), "-m", "ministack.app"], variables=variables)


def _python() -> str:
    """The interpreter of the virtualenv that has it."""
    return str(Path(find("ministack", INSTALL)).parent / "python")


def _version() -> str:
    return first_line(_python(), "-c", "import importlib.metadata as m; print(m.version('ministack'))")


KIND = Kind(
    name="ministack",
    title="ministack",
    install=INSTALL,
    make=Ministack,
    version=_version,
    lacks={"one time": ""},
    failing={"test_tags": "a HEAD does not tell the number of tags"},
)
