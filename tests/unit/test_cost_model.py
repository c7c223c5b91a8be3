"""The model of a deployment: its own arithmetic. Against real requests it is tested in test_cli_cost.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.cli import s3
from celery_s3.costs.model import Deployment, celery_own, celery_s3, cost_of
from celery_s3.costs.prices import price_table

PAGE = Path(__file__).parents[2] / "docs" / "cost.md"
STANDARD = price_table()["s3-standard"]


def verbs(work):
    counts = Counter()
    for one in work:
        counts[one.verb] += one.requests
    return dict(counts)


def test_one_request_each():
    """This backend stores with one PUT and fetches with one GET; Celery's own needs a HEAD more for each."""
    shape = Deployment(tasks=100)
    assert verbs(celery_s3(shape)) == {"PUT": 100, "GET": 100}
    assert verbs(celery_own(shape)) == {"PUT": 100, "GET": 100, "HEAD": 200}


def test_nothing_fetched():
    """Results that nobody fetches cost their PUT."""
    assert verbs(celery_s3(Deployment(tasks=100, fetch=0))) == {"PUT": 100}


@pytest.mark.parametrize(("size", "gets"), [(0, 1), (65_536, 1), (65_537, 2), (65_536 + 4 * 2**20 + 1, 3)])
def test_large_results(size, gets):
    """Beyond 64 KiB a result takes a GET for each 4 MiB more."""
    assert verbs(celery_s3(Deployment(tasks=1, size=size)))["GET"] == gets


def test_results_that_go_up_in_parts():
    """Beyond 16 MiB a result takes a look, and a PUT for each 8 MiB and two more."""
    assert verbs(celery_s3(Deployment(tasks=1, size=16 * 2**20, fetch=0))) == {"PUT": 1}
    assert verbs(celery_s3(Deployment(tasks=1, size=16 * 2**20 + 1, fetch=0))) == {"GET": 1, "PUT": 5}


@pytest.mark.parametrize(("wait", "looks"), [(0.05, 2.3), (1.3, 13.5), (7.7, 41), (60, 130)])
def test_looks(wait, looks):
    """The looks are those that were measured when the schedule was decided (docs/decisions/waiting.md), within 10 %."""
    assert verbs(celery_s3(Deployment(tasks=1, wait=wait)))["GET"] == pytest.approx(looks, rel=0.1, abs=1)


@given(
    tasks=st.integers(1, 10**7),
    fetch=st.floats(0, 1),
    wait=st.floats(0, 30),
    group=st.integers(0, 50),
    size=st.integers(0, 10**6),
)
def test_more_costs_more(tasks, fetch, wait, group, size):
    """Whatever the shape: twice the tasks cost twice as much, nothing is negative, storing alone is the floor."""
    shape = Deployment(tasks=tasks, fetch=fetch, wait=wait, group=group, size=size)
    twice = Deployment(tasks=2 * tasks, fetch=fetch, wait=wait, group=group, size=size)
    for model in (celery_s3, celery_own):
        once = cost_of(model(shape), shape, STANDARD)
        assert cost_of(model(twice), twice, STANDARD) == pytest.approx(2 * once)
        assert once >= tasks * STANDARD.put / 1000
        assert all(one.requests >= 0 and one.up >= 0 and one.down >= 0 for one in model(shape))


@pytest.mark.parametrize("members", [1, 32, 33, 200, 1025])
def test_chords(members):
    """Per member two PUT and at most three GET; per chord no more than a few requests on top. No LIST."""
    shape = Deployment(tasks=members, chord=members, fetch=0)
    counted = verbs(celery_s3(shape))
    assert set(counted) == {"PUT", "GET"}
    assert 2 * members < counted["PUT"] <= 2 * members + members / 16 + 5
    assert counted["GET"] <= 3 * members + 1


def test_large_values_are_read_once_more():
    """In a tree of more than one level, values that summaries do not carry are read from their parts in the end."""
    small, large = (verbs(celery_s3(Deployment(tasks=64, chord=64, size=size))) for size in (1000, 10_000))
    assert large["GET"] == small["GET"] + 64
    assert large["PUT"] == small["PUT"]


def test_who_waits_for_a_body_reads_its_result_alone():
    """However long: nothing of the chord is listed or read."""
    long, short = (celery_s3(Deployment(tasks=3, chord=3, wait=wait)) for wait in (300, 1))
    assert [work.what for work in long] == [work.what for work in short]
    assert "LIST" not in verbs(long)


def test_own_chord_rereads():
    """Celery's `chord_unlock` reads what is ready again each second, so a long header costs more than a short one."""
    quick, slow = (verbs(celery_own(Deployment(tasks=50, chord=50, wait=wait, fetch=0))) for wait in (0.5, 10))
    assert slow["GET"] > 2 * quick["GET"]


# -- the command


def cost(*arguments):
    done = CliRunner().invoke(s3, ["cost", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_each_line_is_requests_times_price():
    """What is printed adds up: the lines to the total, each from its requests and its price."""
    told = json.loads(cost("--json", "--chord", "50", "--wait", "3"))
    for bill in told["bills"]:
        prices = {"PUT": bill["prices"]["put"], "LIST": bill["prices"]["put"]}
        for line in bill["lines"]:
            moved = line["up"] * bill["prices"]["upload"] + line["down"] * bill["prices"]["download"]
            price = prices.get(line["verb"], bill["prices"]["get"])
            assert line["dollars"] == pytest.approx(line["requests"] * price / 1000 + moved / 2**30)
        assert bill["total"] == pytest.approx(sum(line["dollars"] for line in bill["lines"]) + bill["storage"])


def test_other_prices(tmp_path):
    """With --prices each table of the file is reckoned with, the first one for Celery's own backend too."""
    file = tmp_path / "prices.toml"
    file.write_text('date = 2026-05-01\nsource = "x"\n[mine]\ntitle = "Mine"\nput = 1\nget = 2\nstorage = 3\n')
    bills = json.loads(cost("--json", "--tasks", "1000", "--prices", str(file)))["bills"]
    assert [(bill["backend"], bill["prices"]["title"]) for bill in bills] == [
        ("celery-s3", "Mine"),
        ("Celery's own s3", "Mine"),
    ]
    assert bills[0]["total"] == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("arguments", ["--group 3 --chord 3", "--measured --tasks 3", "--timeout 3"])
def test_options_that_do_not_go_together(arguments):
    """A group and a chord at once is no shape, and no option is taken and ignored."""
    done = CliRunner().invoke(s3, ["cost", *arguments.split()])
    assert done.exit_code == click.UsageError.exit_code


def test_the_page_shows_what_the_command_prints():
    """Each example of docs/cost.md is what the command prints."""
    text = PAGE.read_text(encoding="utf-8")
    examples = [block.partition("\n") for block in text.split("```console\n$ celery s3 cost")[1:]]
    assert len(examples) >= 2
    for arguments, _, rest in examples:
        assert rest.partition("```")[0].strip() == cost(*arguments.split()).strip()
