"""Chords over RabbitMQ, by real workers: what Redis brings is brought, and what is delivered again is done once."""

from __future__ import annotations

import pytest
from celery import chord
from test_chords import CASES, SOON, VALUES, lines, outcome, side_on

__all__ = ["side_on"]  # pytest finds the fixture here


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_over_rabbitmq(side_on, seaweed, rabbitmq_url, tmp_path, pool):
    """Plain, generated, nested and failing chords; a body is called once."""
    side = side_on(
        seaweed, worker=False, broker_url=rabbitmq_url, task_acks_late=True, worker_enable_remote_control=False
    )
    side.start(f"--pool={pool}")
    sent = {name: CASES[name](side.tasks).apply_async() for name in ("list_of_65", "nested_chord", "inner_chord_fails")}
    path = tmp_path / "notes"
    noted = chord((side.tasks.add.si(n) for n in range(40)), side.tasks.note_value.s(str(path))).apply_async()
    assert outcome(sent["list_of_65"]) == [n + 1 for n in range(65)]
    assert outcome(sent["nested_chord"]) == [5, 8]
    assert outcome(sent["inner_chord_fails"]) == VALUES["inner_chord_fails"]
    noted.get(timeout=SOON)
    assert lines(path) == [str([n + 1 for n in range(40)])]
