"""What each server can do: by `doctor --thorough`, and by hand; and that the probe comes to the same verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.cli import s3

from .asked import QUESTIONS, Bench, create, replace, replace_bare


@pytest.mark.timeout(300)  # about 200 requests, after the start of a server
def test_capabilities(server: Any, kind: Any, make_app: Any, record_property: Any) -> None:
    """A server does what is not among its known lacks, and nothing that is: on the day when it does, this fails."""
    obj = CLIContext(app=make_app(server), no_color=True, workdir=None)
    done = CliRunner().invoke(s3, ["doctor", "--thorough", "--json"], obj=obj, catch_exceptions=False)
    found = {one["name"]: one for one in json.loads(done.stdout)["capabilities"]}
    record_property("capabilities", found)
    lacking = {name for name, one in found.items() if one["verdict"] != "yes"}
    assert lacking - kind.unsteady == set(kind.lacks) - kind.unsteady


@pytest.mark.parametrize("question", QUESTIONS)
def test_by_hand(server: Any, kind: Any, question: str) -> None:
    """boto3 alone gets the same answers: a lack that is told is one, and one that is not told is none."""
    if question not in kind.unsteady:
        assert QUESTIONS[question](Bench(server)) == (question not in kind.lacks)


def test_verdict_of_the_probe(server: Any, make_app: Any) -> None:
    """Conditional writes are relied upon where requests made by hand are answered as they should be, and only there."""
    honoured = create(Bench(server)) and (replace(Bench(server)) or replace_bare(Bench(server)))
    assert make_app(server).backend.results.conditional.supported() == honoured
