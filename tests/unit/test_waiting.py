"""The schedule and the loops, on a clock that only the test moves."""

import pytest
from celery.exceptions import TimeoutError

from celery_s3.results import waiting


class Clock:
    """Time passes by sleeping, and ``cost`` seconds by each look."""

    def __init__(self, cost=0.0):
        self.now = 0.0
        self.cost = cost
        self.naps = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds


def steady(low, high):
    return 1.0


def wait(ready_at, clock, **kwargs):
    looks = []

    def look():
        looks.append(clock.now)
        clock.now += clock.cost
        return "done" if looks[-1] >= ready_at else None

    kwargs.setdefault("delay", waiting.adaptive(steady))
    return waiting.until(look, clock=clock, **kwargs), looks


@pytest.mark.parametrize(
    ("length", "most_late", "most_looks"),
    [(0.05, 0.08, 4), (1.3, 0.16, 16), (7.7, 0.33, 44), (60, 0.85, 140), (3600, 2.0, 2100)],
)
def test_adaptive_latency_and_looks(length, most_late, most_looks):
    """With 20 ms a look, a result is seen soon after it is there, in looks that grow slower than the wait."""
    clock = Clock(cost=0.02)
    _, looks = wait(length, clock)
    assert looks[-1] - length <= most_late
    assert len(looks) <= most_looks


def test_jitter_stays_around_the_schedule():
    """Jitter moves a nap by a tenth at most."""
    assert all(0.9 * 0.12 <= waiting.adaptive()(1.0) <= 1.1 * 0.12 for _ in range(200))


@pytest.mark.parametrize("interval", [0.1, 5, 60])
def test_interval_to_the_letter(interval):
    """A caller's interval is slept exactly."""
    clock = Clock()
    wait(interval * 3, clock, delay=waiting.schedule(interval))
    assert clock.naps == [interval] * 3


@pytest.mark.parametrize("interval", [None, 0.5])
def test_default_interval_is_adaptive(interval):
    """Celery's default interval means that the caller said nothing."""
    assert waiting.schedule(interval)(0.0) < 0.1


def test_timeout_zero_is_one_look():
    """``timeout=0`` looks once, and raises without a nap."""
    clock = Clock()
    with pytest.raises(TimeoutError):
        wait(1, clock, timeout=0)
    assert clock.naps == []


def test_timeout_zero_returns_what_is_there():
    """``timeout=0`` returns a result that is there."""
    assert wait(0, Clock(), timeout=0)[0] == "done"


def test_never_past_the_deadline():
    """The last nap ends at the deadline, where one more look is made."""
    clock = Clock()
    with pytest.raises(TimeoutError, match="3 seconds"):
        wait(100, clock, timeout=3, delay=waiting.schedule(2))
    assert clock.naps == [2, 1]


def test_on_interval_is_called_after_each_look_in_vain():
    """``on_interval`` runs once a look, and an error in it ends the wait."""
    calls = []
    wait(1, Clock(), delay=waiting.schedule(0.25), on_interval=lambda: calls.append(1))
    assert len(calls) == 4

    def fail():
        raise KeyError("stop")

    with pytest.raises(KeyError):
        wait(1, Clock(), on_interval=fail)


class Group:
    """Members that are ready at given times; counts the questions."""

    def __init__(self, ready_at, cost=0.0):
        self.ready_at = ready_at
        self.clock = Clock(cost)
        self.asked = []

    def ask(self, next_question):
        for id in iter(next_question, None):
            self.asked.append(id)
            yield id, (id.upper() if self.ready_at[id] <= self.clock.now else None)
        self.clock.now += self.clock.cost

    def each(self, **kwargs):
        kwargs.setdefault("delay", waiting.adaptive(steady))
        return waiting.each(self.ready_at, self.ask, clock=self.clock, **kwargs)


def members(count, ready_at):
    return {f"m{index}": ready_at(index) for index in range(count)}


def test_finished_group_is_one_request_a_member():
    """A group that is finished is read once through, without a nap."""
    group = Group(members(500, lambda index: 0))
    assert dict(group.each()) == {id: id.upper() for id in group.ready_at}
    assert len(group.asked) == 500
    assert group.clock.naps == []


def test_running_group_asks_for_a_window():
    """A group that finishes in order costs one request a member and a few per look."""
    group = Group(members(1000, lambda index: index * 0.01), cost=0.02)
    assert len(dict(group.each())) == 1000
    assert len(group.asked) <= 1000 + 40 * len(group.clock.naps)


def test_next_look_knows_how_long_was_waited():
    """With an interval of the caller's, too, a look asks for as many in turn as the time waited is worth."""
    group = Group(members(1000, lambda index: 100), cost=0.02)
    with pytest.raises(TimeoutError):
        list(group.each(timeout=10, delay=waiting.schedule(1)))
    assert 1000 <= len(group.asked) <= 1300


def test_early_failure_behind_a_slow_head_is_seen():
    """The turn over the rest reaches a ready member although the head of the group is slow."""
    ready_at = members(200, lambda index: 1000)
    ready_at["m150"] = 1
    group = Group(ready_at, cost=0.02)
    assert next(group.each()) == ("m150", "M150")
    assert group.clock.now < 60


def test_duplicates_are_asked_once():
    """An id that is named twice is read once."""
    group = Group({"a": 0})
    assert list(waiting.each(["a", "a"], group.ask, delay=waiting.adaptive())) == [("a", "A")]
    assert group.asked == ["a"]


def test_group_timeout_zero():
    """``timeout=0`` on a group is one look: what is ready is yielded before the error."""
    group = Group({"a": 0, "b": 9})
    seen = []
    with pytest.raises(TimeoutError):
        seen.extend(group.each(timeout=0))
    results = group.each(timeout=0)
    assert next(results) == ("a", "A")
    assert group.clock.naps == []


def test_passes_look_at_every_member():
    """``max_iterations`` asks for each member in each pass, and ends quietly."""
    group = Group(members(100, lambda index: 0 if index == 99 else 9))
    assert list(group.each(passes=1)) == [("m99", "M99")]
    assert len(group.asked) == 100
    assert group.clock.naps == []


def test_empty_group():
    """No members, no look."""
    assert list(Group({}).each()) == []
