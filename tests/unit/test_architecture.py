"""The house: imports run downwards, clients stay behind their seam, what is private to Celery in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import billiard
import celery
import kombu
import pytest

SOURCE = Path(__file__).parents[2] / "src" / "celery_s3"

#: From the ground up: a room may import those in its own line and above it in this list, never below.
FLOORS = [
    ["printable", "errors"],
    ["interruptions", "processes", "outbox", "serializers", "keys", "metadata", "celery_private"],
    ["settings"],
    ["store"],
    ["sealing", "notices"],
    ["bucket"],
    ["codec"],
    ["results"],
    ["aio"],
    ["chords"],
    ["files"],
    ["claimcheck", "typed"],
    ["expiry"],
    ["costs", "cost"],
    ["operate"],
    ["backends"],
    ["dev"],
    ["cli"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: Imports at first use of what stands above, each with its reason. There is no other.
LADDERS = {
    # kombu finds the serializers by their entry points while it is being imported: they know nobody, and load what they
    # need with the first value.
    ("celery_s3.serializers", "celery_s3.files.file"),
    ("celery_s3.serializers", "celery_s3.typed"),
    # the package offers the one class that applications name
    ("celery_s3", "celery_s3.files.file"),
}
#: Who may import the clients' libraries, apart from ``store/clients``.
KMS = "celery_s3.sealing.kms"


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        name = ".".join(("celery_s3", *file.relative_to(SOURCE).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = ast.parse(file.read_text(), str(file))
    return found


def imported(name: str) -> Iterator[str]:
    """Everything that a module imports, wherever in it: inside functions and for annotations too."""
    package = name if (SOURCE / "/".join(name.split(".")[1:]) / "__init__.py").exists() else name.rpartition(".")[0]
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules() else base


@cache
def arrows() -> dict[str, set[str]]:
    """Who imports whom among our own modules."""
    return {
        name: {
            other for other in imported(name) if other in modules() and other != name and (name, other) not in LADDERS
        }
        for name in modules()
    }


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_no_circle() -> None:
    """No module imports itself by way of others, not even inside a function or for an annotation."""
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(arrows()[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in modules():
        walk(name, ())


def test_every_room_has_a_floor() -> None:
    """A new room is given its place here, before anything is built on it."""
    assert {room(name) for name in modules() if room(name)} == set(FLOOR)


def test_downwards() -> None:
    """Who is changed when a room changes stands above it."""
    up = [
        f"{name} → {other}"
        for name, others in arrows().items()
        for other in others
        if room(name) != room(other) and room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    same_floor = [one for one in up if FLOOR[room(one.split(" → ")[0])] == FLOOR[room(one.split(" → ")[1])]]
    assert sorted(set(up) - set(same_floor)) == []
    # those on one floor may know each other, in one direction: no circle among rooms either
    pairs = {(room(one.split(" → ")[0]), room(one.split(" → ")[1])) for one in same_floor}
    assert [pair for pair in pairs if pair[::-1] in pairs] == []


@pytest.mark.parametrize("library", ["boto3", "botocore", "obstore"])
def test_clients_stay_behind_the_seam(library: str) -> None:
    """What boto3 and obstore change concerns one folder, and the errors of both are translated there."""
    found = {name for name in modules() for other in imported(name) if other.split(".")[0] == library}
    assert {name for name in found if not name.startswith("celery_s3.store.clients.")} <= {KMS}


def test_devtools_stay_outside() -> None:
    """The wheel needs nothing that is not in it."""
    assert [name for name in modules() for other in imported(name) if other.split(".")[0] == "devtools"] == []


def _foreign_private_names() -> set[str]:
    """Names with a leading underscore that Celery, kombu and billiard define."""
    names: set[str] = set()
    for library in (celery, kombu, billiard):
        for file in Path(library.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    names.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_private_names_of_celery_in_one_file() -> None:
    """What Celery does not promise stands in one file, which is the one that its next version may touch."""
    private, found = _foreign_private_names(), []
    for name, tree in modules().items():
        if name == "celery_s3.celery_private":
            continue
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        own |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "celery",
                "kombu",
                "billiard",
            ):
                words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{name}:{node.lineno} {word}" for word in words if word.startswith("_")]
            elif isinstance(node, ast.Attribute) and node.attr in private and node.attr not in own:
                found.append(f"{name}:{node.lineno} {node.attr}")
    assert found == []
