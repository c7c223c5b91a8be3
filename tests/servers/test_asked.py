"""What each server can do, asked by hand, and that the probe comes to the same verdict."""

from __future__ import annotations

from typing import Any

import pytest

from celery_s3.store.probe import ConditionalWrites

from . import asked


@pytest.mark.parametrize("question", asked.QUESTIONS)
def test_question(server: Any, kind: Any, question: str, record_property: Any) -> None:
    """A server does what is not among its known lacks, and nothing that is: on the day when it does, this fails."""
    answer = asked.ask(question, server)
    record_property("question", question)
    record_property("answer", answer)
    assert answer == (question not in kind.lacks)


def test_verdict_of_the_probe(server: Any, make_app: Any) -> None:
    """Conditional writes are relied upon where requests made by hand are answered as they should be, only there."""
    right = asked.ask("replace_quoted", server) or asked.ask("replace_bare", server)
    honoured = asked.ask("create", server) and asked.ask("replace_refused", server) and right
    assert make_app(server).backend.results.conditional.supported() == honoured
