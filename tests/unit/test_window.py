"""Which members of a group are asked for, on a simulated bucket: requests of 20 ms, 64 of them at a time."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest

from celery_s3.results import waiting
from celery_s3.results.window import Window

NEVER = 1e9
ROUND_TRIP = 0.02
ABREAST = 64


@dataclass
class Run:
    """What a wait came to: requests made, and when each member was found, in seconds since its beginning."""

    gets: int = 0
    found: dict[int, float] = field(default_factory=dict)
    looks: int = 0


def run(ends, until=NEVER):
    """Wait for members that end at the given times, until all are there or so many seconds have passed."""
    window, result, now = Window(map(str, range(len(ends)))), Run(), 0.0
    delay = waiting.adaptive(lambda low, high: 1.0)
    while True:
        result.looks += 1
        under_way = []

        def ask(now, under_way=under_way):
            while len(under_way) < ABREAST and (id := window.next_question()) is not None:
                result.gets += 1
                heapq.heappush(under_way, (now + ROUND_TRIP, int(id), ends[int(id)] <= now + ROUND_TRIP / 2))

        ask(now)
        while under_way:
            now, member, there = heapq.heappop(under_way)
            window.answer(str(member), found=there)
            if there:
                assert member not in result.found
                result.found[member] = now
            ask(now)
        if not window.pending or now > until:
            return result
        now += delay(now)
        window.look_again(now)


def test_finished_group_is_one_request_a_member():
    """A group that is finished is read in one look, with ever more requests under way."""
    done = run([0] * 500)
    assert (done.gets, done.looks, len(done.found)) == (500, 1, 500)
    assert max(done.found.values()) <= 0.3


@pytest.mark.parametrize("hanging", [range(16), range(484, 500), random.Random(1).sample(range(500), 16)])
def test_what_was_finished_before_comes_in_the_first_look(hanging):
    """484 of 500 members are there already: they come at the rate of the reads, wherever the other 16 stand."""
    ends = [0.0] * 500
    for member in hanging:
        ends[member] = 30.0
    done = run(ends)
    early = [when for member, when in done.found.items() if not ends[member]]
    assert (len(early), len(done.found)) == (484, 500)
    assert max(early) <= 0.5
    assert done.gets <= 1.45 * 500


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_part_of_a_large_group_was_finished_before(seed, share):
    """Of 10,000 members half or a third, at random, are there already: they come within seconds."""
    chance = random.Random(seed)
    ends = [0.0 if chance.random() < share else NEVER for _ in range(10_000)]
    done = run(ends, until=60)
    assert len(done.found) == ends.count(0.0)
    assert max(done.found.values()) <= 5


@pytest.mark.parametrize("failed", [0, 1, 17, 250, 440, 499])
def test_early_failure_is_seen(failed):
    """One member has failed already and all others hang: it is seen within seconds, for few requests."""
    ends = [NEVER] * 500
    ends[failed] = 0.0
    done = run(ends, until=60)
    assert done.found[failed] <= 6
    assert done.gets <= 2.3 * 500


def test_later_failure_is_seen():
    """One that fails while all others hang is seen before ten times as long has passed."""
    ends = [NEVER] * 500
    ends[440] = 3.0
    assert run(ends, until=60).found[440] <= 30


@pytest.mark.parametrize("seconds", [1, 5, 20, 60])
def test_group_that_ends_in_order(seconds):
    """Members that end in the order in which they were sent cost at most 1.7 requests each, and are seen soon."""
    ends = [seconds * (member + 1) / 500 for member in range(500)]
    done = run(ends)
    assert done.gets <= 1.7 * 500
    late = sorted(done.found[member] - ends[member] for member in range(500))
    assert late[250] <= 0.3
    assert late[-1] <= 1.0


@pytest.mark.parametrize("seconds", [1, 5, 20, 60])
def test_group_that_ends_in_any_order(seconds):
    """Members that end in any order cost at most four requests each: nobody can know who is next."""
    chance = random.Random(7)
    ends = [seconds * chance.random() for _ in range(500)]
    done = run(ends)
    assert done.gets <= 4 * 500
    late = sorted(done.found[member] - ends[member] for member in range(500))
    assert late[250] <= 0.15 * seconds + 0.3


def test_hanging_group_asks_less_and_less():
    """While nothing ends, all members are asked in turn about once in each tenfold of the time waited."""
    first, second = run([NEVER] * 500, until=10).gets, run([NEVER] * 500, until=100).gets
    assert first <= 750
    assert 400 <= second - first <= 650


def test_everyone():
    """Where each look is to ask for every member, it does, whatever it finds."""
    window = Window("abcdefghijklmnopqrstuvwxyz", everyone=True)
    for look in range(2):
        asked = list(iter(window.next_question, None))
        assert sorted(asked) == sorted(window.pending)
        for id in asked:
            window.answer(id, found=id == "xy"[look])
        window.look_again(look + 1.0)
    assert len(window.pending) == 24


def test_two_members():
    """From two members on, a look begins with two requests at least: they are made at the same time."""
    window = Window(["a", "b", "c"])
    for look in range(50):
        asked = list(iter(window.next_question, None))
        assert len(asked) >= 2
        for id in asked:
            window.answer(id, found=False)
        window.look_again(look + 1.0)


def test_nobody():
    """No members, no questions."""
    assert Window([]).next_question() is None
