"""A little of what ``tests/soak/fuzz.py`` does for longer: garbage for every decoder, and proof that it would see."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from celery_s3.errors import UnreadableResult
from celery_s3.metadata import are_children

SOAK = Path(__file__).parents[1] / "soak"
sys.path.insert(0, str(SOAK))

import fuzz  # noqa: E402

# What a decoder says of garbage.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("decoder", fuzz.DECODERS, ids=lambda decoder: decoder.name)
def test_garbage(decoder):
    """Garbage is a value or a documented error: no other one, no code, no endless work."""
    outcomes = fuzz.run(decoder, 50, seed=1)
    assert sum(outcomes.values()) >= 50


def test_metadata_that_is_nested():
    """Children in the user metadata that are nested without end are unknown children, not a RecursionError."""
    assert fuzz.children_in({"celery-children": "[" * 2000}) == {}


@pytest.mark.parametrize(
    "children", [5, "ab", {"a": 1}, [5], ["ab"], [["id"]], [[None, None]], [[["id", 5], None]], [[["i", None], 5]]]
)
def test_children_that_are_none(children):
    """Children of which Celery cannot make results are unknown in the metadata, and an error of ours in a body."""
    assert fuzz.children_in({"celery-children": json.dumps(children)}) == {}
    body = json.dumps({"status": "SUCCESS", "result": 1, "children": children}).encode()
    with pytest.raises(UnreadableResult, match="its children are no results"):
        fuzz.reader(fuzz.JSON)(body)


def test_children_of_every_kind():
    """Children of tasks, groups, chains and nested groups are children."""
    task, group = fuzz.APP.AsyncResult("a"), fuzz.APP.GroupResult("g", [fuzz.APP.AsyncResult("b")])
    chained = fuzz.APP.AsyncResult("c", parent=fuzz.APP.GroupResult("h", [group, task], parent=task))
    stored = [one.as_tuple() for one in (task, group, chained)]
    assert are_children(stored)
    assert are_children(json.loads(json.dumps(stored)))
    assert are_children(None)
    assert are_children([task, ["old", None]])


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "decode",
    [
        lambda body: pickle.loads(pickle.dumps(Harmful())),
        lambda body: exec(body),
        lambda body: os.system("true"),
        lambda body: __import__("this"),
        lambda body: body.nothing,
    ],
)
def test_harm_is_seen(decode):
    """A decoder that unpickled, ran code, started a program, imported, or raised what it does not name would fail."""
    with pytest.raises((fuzz.Forbidden, AttributeError)):
        fuzz.feed(fuzz.Decoder("harmful", decode, errors=(ValueError,)), b"1")


def test_memory_is_seen(monkeypatch):
    """A decoder that made far more than it was given would fail."""
    monkeypatch.setattr(fuzz, "MEMORY_OF_ONE", 1 << 20)
    with pytest.raises(AssertionError, match="bomb took"):
        fuzz.feed(fuzz.Decoder("bomb", lambda body: b"x" * fuzz.peak()), b"1")


def test_command():
    """The command feeds as many inputs as it is told to, and says what became of them."""
    command = [sys.executable, SOAK / "fuzz.py", "--inputs", "60", "--only", "seal", "--seed", "7"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0] == "2 decoders, 30 inputs each, seed 7"
    assert told[-1].endswith("inputs, 0 decoders failed")
    assert int(told[-1].split()[0]) >= 60
