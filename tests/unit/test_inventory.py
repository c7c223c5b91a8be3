"""The list of results: newest first, in few requests, with bounded memory; and deleting many."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.cli import query
from celery_s3.errors import AccessDenied, Tampered
from celery_s3.keys import Layout
from celery_s3.metadata import result_metadata
from celery_s3.operate import budget, inventory
from celery_s3.operate.budget import Budget
from celery_s3.operate.inventory import FRESH, Filter, Inventory
from celery_s3.settings import Settings
from celery_s3.store.counting import Counting, Tally
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool

LAYOUT = Layout("base/")
PREFIX = LAYOUT.results
START = 1_900_000_000


def at(seconds):
    return datetime.fromtimestamp(START + seconds, UTC)


class Bucket:
    """A bucket, its clock, and an inventory of it that nobody is asked about."""

    def __init__(self, *, concurrency=1, ask=None, before=None):
        self.now = START
        self.store = MemoryStore(clock=lambda: self.now, before=before)
        tally = Tally()
        self.budget = Budget(tally, ask or (lambda spent, share: None))
        counting = Counting(self.store, tally)
        self.inventory = Inventory(counting, Pool(concurrency), LAYOUT, self.budget, clock=lambda: self.now)

    def put(self, id, state="SUCCESS", task="proj.add", age=None, body=b"{}"):
        before, self.now = self.now, self.now if age is None else START - age
        self.store.put(PREFIX + id, body, metadata=result_metadata(state, task) if state else {})
        self.now = before

    def requests(self):
        spent = Counter(verb for verb, _ in self.store.requests)
        self.store.requests.clear()
        return dict(spent)

    def ids(self):
        return {entry.key.removeprefix(PREFIX) for entry in self.store.list(PREFIX)}


@pytest.fixture
def bucket():
    return Bucket()


def ids(found):
    return [one.id for one in found]


# -- listing


def test_newest_first(bucket):
    """Whatever the order of the keys, the newest come first, with state, task, size and time."""
    for id, age in (("b", 30), ("a", 10), ("c", 20)):
        bucket.put(id, age=age, body=b"x" * age)
    bucket.store.put("base/celery-taskset-meta-group", b"{}")
    bucket.store.put("base/celery-chords/g/manifest", b"{}")
    found = bucket.inventory.newest(Filter(), 10)
    assert ids(found) == ["a", "c", "b"]
    assert [(one.state, one.task, one.entry.size, one.entry.modified) for one in found[:1]] == [
        ("SUCCESS", "proj.add", 10, at(-10))
    ]


def test_only_what_is_shown_is_read(bucket):
    """Without a filter a listing costs a request per 1,000 keys, and one for each result that is shown."""
    for number in range(1500):
        bucket.put(f"{number:04}", age=number)
    bucket.requests()
    assert len(bucket.inventory.newest(Filter(), 7)) == 7
    assert bucket.requests() == {"LIST": 2, "GET": 7}
    assert bucket.budget.spent == {"LIST": 2, "GET": 7}
    assert bucket.inventory.listed.count == 1500


def test_times_cost_no_metadata(bucket):
    """--since and --older-than are judged by the listing: only what fits is read."""
    for number in range(20):
        bucket.put(f"{number:02}", age=number)
    bucket.requests()
    found = bucket.inventory.newest(Filter(since=at(-5), before=at(-2)), 10)
    assert ids(found) == ["03", "04", "05"]
    assert bucket.requests() == {"LIST": 1, "GET": 3}


def test_old_ones_are_not_read(bucket):
    """With a filter by state, nothing is read that is older than as many fitting results as are shown."""
    for number in range(300):
        bucket.put(f"{number:03}", "FAILURE" if number % 2 else "SUCCESS", age=number)
    bucket.requests()
    assert ids(bucket.inventory.newest(Filter(states=frozenset({"failure"})), 3)) == ["001", "003", "005"]
    assert bucket.requests() == {"LIST": 1, "GET": 6}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["SUCCESS", "FAILURE", None])), max_size=40),
    st.integers(1, 12),
    st.sampled_from([Filter(), Filter(states=frozenset({"failure"})), Filter(since=at(-25), before=at(-3))]),
)
def test_the_newest_are_the_newest(results, limit, wanted):
    """Any results in any order: exactly the newest that fit, in order, none twice, and never more than asked for."""
    bucket = Bucket()
    for number, (age, state) in enumerate(results):
        bucket.put(str(number), state, age=age)
    fitting = [
        (START - age, PREFIX + str(number))
        for number, (age, state) in enumerate(results)
        if wanted.in_time(at(-age)) and (not wanted.states or state == "FAILURE")
    ]
    found = bucket.inventory.newest(wanted, limit)
    assert [(one.entry.modified.timestamp(), one.entry.key) for one in found] == sorted(fitting, reverse=True)[:limit]


def test_in_parallel():
    """Read in parallel, the result is the same."""
    bucket = Bucket(concurrency=8)
    numbers = list(range(200))
    random.Random(1).shuffle(numbers)
    for key, number in enumerate(numbers):
        bucket.put(f"{key:03}-{number:03}", "FAILURE" if number % 10 == 3 else "SUCCESS", age=number)
    found = bucket.inventory.newest(Filter(states=frozenset({"failure"})), 5)
    assert [one.id[-3:] for one in found] == ["003", "013", "023", "033", "043"]
    bucket.inventory.pool.close()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("proj.add", {"a"}), ("proj.*", {"a", "b"}), ("proj.a??", {"a"}), ("PROJ.ADD", set()), ("*", {"a", "b", "é"})],
)
def test_tasks(bucket, pattern, expected):
    """A task is named exactly or by a pattern; what has no name fits none."""
    bucket.put("a", task="proj.add")
    bucket.put("b", task="proj.mul")
    bucket.put("é", task="größe")
    bucket.put("d", task=None)
    assert set(ids(bucket.inventory.newest(Filter(task=pattern), 10))) == expected


def test_expiry(bucket):
    """When a result expires is told as its object tells it; a time that no calendar has is none."""
    bucket.inventory.expires_at = lambda found: found.modified.timestamp() + 60
    bucket.put("a", age=10)
    assert [one.expires for one in bucket.inventory.newest(Filter(), 10)] == [at(50)]
    assert inventory.time_of(1e300) is None


def test_states_of_other_writers(bucket):
    """A result without our metadata is listed without state and task, and fits no filter by them."""
    bucket.put("other", state=None)
    (found,) = bucket.inventory.newest(Filter(), 10)
    assert (found.state, found.task) == (None, None)
    assert bucket.inventory.newest(Filter(states=frozenset({"success"})), 10) == []


def test_ids_of_any_kind(bucket):
    """The id is told as the task has it, not as it stands in its key."""
    bucket.put("a%2F%00")
    assert ids(bucket.inventory.newest(Filter(), 10)) == ["a/\x00"]


def test_gone_meanwhile(bucket):
    """A result that is forgotten between listing and reading is left out."""
    for id in "abc":
        bucket.put(id)
    bucket.store._before = lambda verb, key: verb == "GET" and bucket.store._objects.pop(PREFIX + "b", None)
    assert ids(bucket.inventory.newest(Filter(), 10)) == ["c", "a"]


def test_trouble_with_one_seal(bucket):
    """An object whose seal is broken tells no state, and hides no other."""
    bucket.put("a")
    bucket.put("b")
    bucket.store.faults.append(Fault(Tampered(), "GET", PREFIX + "a"))
    assert {one.id: one.state for one in bucket.inventory.newest(Filter(), 10)} == {"a": None, "b": "SUCCESS"}


def test_errors_of_the_store(bucket):
    """Any other error is raised."""
    bucket.put("a")
    bucket.store.faults.append(Fault(AccessDenied(), "GET", PREFIX + "a"))
    with pytest.raises(AccessDenied):
        bucket.inventory.newest(Filter(), 10)


def test_known(bucket):
    """Of some ids those that are there, in a request each."""
    bucket.put("a", "RETRY")
    bucket.put("b%00")
    bucket.requests()
    assert {one.id: one.state for one in bucket.inventory.known(["a", "b\x00", "c"])} == {
        "a": "RETRY",
        "b\x00": "SUCCESS",
    }
    assert bucket.requests() == {"GET": 3}


# -- asking before it gets expensive


def test_nobody_is_asked_about_a_thousand(bucket, monkeypatch):
    """Up to 1,000 requests are made without asking; before one more somebody is asked, once."""
    monkeypatch.setattr(budget, "FREE", 10)
    asked = []
    bucket = Bucket(ask=lambda spent, share: asked.append(spent.total()))
    for number in range(30):
        bucket.put(f"{number:02}")
    bucket.inventory.newest(Filter(), 9)
    assert asked == []
    bucket.inventory.newest(Filter(), 9)
    assert asked == [10]


def test_no_means_no_request_more(monkeypatch):
    """Whoever says no has made no more than 1,000 requests."""
    monkeypatch.setattr(budget, "FREE", 10)

    def no(spent, share):
        raise click.Abort

    bucket = Bucket(ask=no)
    for number in range(30):
        bucket.put(f"{number:02}")
    bucket.requests()
    with pytest.raises(click.Abort):
        bucket.inventory.newest(Filter(task="proj.add"), 20)
    assert bucket.requests() == {"LIST": 1, "GET": 9}


def test_the_estimate(monkeypatch):
    """Celery's ids are random: how far a listing has come tells what all of it costs."""
    monkeypatch.setattr(budget, "FREE", 2)
    asked = []
    bucket = Bucket(ask=lambda spent, share: asked.append(share))
    for number in range(4000):
        bucket.put(str(UUID(int=number * 2**128 // 4000)))
    assert bucket.inventory.extent(Filter()).count == 4000
    assert asked == [pytest.approx(0.5, abs=0.001)]
    aws = Settings(bucket="results")
    assert query._so_far(Counter(LIST=2), 0.5, aws) == (
        "This has taken 2 requests ($0.0000), for 50% of the results; all of them take about 4 requests ($0.0000)."
    )
    assert "how much is not known" in query._so_far(Counter(LIST=2), None, aws)
    assert budget._share("my-own-id") is None


@pytest.mark.parametrize(
    ("requests", "endpoint", "text"),
    [
        ({"GET": 2_500_000}, None, "2,500,000 requests ($1.00)"),
        ({"LIST": 1000, "GET": 1000, "DELETE_OBJECTS": 5}, None, "2,005 requests ($0.0054)"),
        ({"LIST": 2000}, "http://127.0.0.1:9000", "2,000 requests"),
    ],
)
def test_price(requests, endpoint, text):
    """Dollars are told where Amazon sends the bill."""
    assert query.price(requests, Settings(bucket="results", endpoint_url=endpoint)) == text


# -- forgetting


def test_forget_by_time(bucket):
    """By time: a listing, and a deletion for each 1,000; nothing is read."""
    for number in range(2500):
        bucket.put(f"{number:04}", age=10 if number < 1200 else 0)
    bucket.requests()
    gone = list(bucket.inventory.forget(Filter(before=at(-5))))
    assert bucket.requests() == {"LIST": 3, "DELETE_OBJECTS": 2}
    assert len(gone) == 1200
    assert len(bucket.ids()) == 1300


def test_forget_by_state(bucket):
    """By state: the others stay, and so does what tells no state."""
    bucket.put("a", "FAILURE")
    bucket.put("b", "SUCCESS")
    bucket.put("c", None)
    looked = []
    assert ids(bucket.inventory.forget(Filter(states=frozenset({"failure"})), looked.append)) == ["a"]
    assert bucket.ids() == {"b", "c"}
    assert sum(looked) == 3


def test_written_between_listing_and_reading(bucket):
    """A result that is written anew after the listing is judged as it is then."""
    bucket.put("a", "FAILURE", age=100)
    bucket.put("b", "FAILURE", age=100)

    def written(verb, key):
        if verb == "GET" and key.endswith("a"):
            bucket.store._before = None
            bucket.put("a", "FAILURE")

    bucket.store._before = written
    assert ids(bucket.inventory.forget(Filter(frozenset({"failure"}), before=at(-50)))) == ["b"]
    assert bucket.ids() == {"a"}


@pytest.mark.parametrize("wanted", [Filter(before=at(-50)), Filter(frozenset({"failure"}), before=at(-50))])
def test_written_while_a_batch_filled_up(bucket, wanted):
    """A result that was looked at longer than a moment ago is looked at again before it is deleted."""
    for number in range(5):
        bucket.put(str(number), "FAILURE", age=100)
    found = bucket.inventory.matching(wanted)

    def slowly(*_):
        for one in found:
            yield one
            bucket.now += FRESH / 2
        bucket.put("1", "SUCCESS")

    bucket.inventory.matching = slowly
    bucket.requests()
    assert sorted(ids(bucket.inventory.forget(wanted))) == ["0", "2", "3", "4"]
    assert bucket.ids() == {"1"}


def test_written_between_looking_and_deleting(bucket):
    """What is written in the very last moment stays, and is not told as forgotten."""
    bucket.put("a", "FAILURE")
    bucket.put("b", "FAILURE")

    def written(verb, key):
        if verb == "DELETE_OBJECTS":
            bucket.put("a", "SUCCESS", body=b"{1}")

    bucket.store._before = written
    assert ids(bucket.inventory.forget(Filter(frozenset({"failure"})))) == ["b"]
    assert bucket.ids() == {"a"}


def test_full_pages(bucket):
    """As many requests are counted as are made, also where the last page is full."""
    for number in range(2000):
        bucket.put(f"{number:04}")
    bucket.requests()
    assert bucket.inventory.extent(Filter()).newest == at(0)
    assert bucket.requests() == bucket.budget.spent == {"LIST": 2}


def test_forgotten_twice_at_once(bucket):
    """Two that forget the same results do no harm to each other."""
    for number in range(10):
        bucket.put(str(number), "FAILURE")
    first = bucket.inventory.forget(Filter(frozenset({"failure"})))
    other = Inventory(bucket.store, Pool(1), LAYOUT, Budget(Tally(), None))
    assert len(list(other.forget(Filter(frozenset({"failure"}))))) == 10
    assert list(first) == []


# -- what users type


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2h", 7200), ("7d", 604_800), ("1h30m", 5400), ("1.5m", 90), ("2w", 1_209_600)]
)
def test_durations(text, seconds):
    """Durations are written as everywhere."""
    assert query.duration(text) == seconds
    assert abs(datetime.now(UTC) - timedelta(seconds=seconds) - query.moment(text)) < timedelta(seconds=5)


@pytest.mark.parametrize("text", ["", "h", "1x", "-1h", "1h 30m", "99999999999999d", "yesterday", "nan"])
def test_no_time(text):
    """What is no time is a wrong option, and the message shows how to write one."""
    with pytest.raises(click.BadParameter, match="write 90s, 2h or 7d"):
        query.moment(text)


def test_iso_times():
    """A time with an offset is that time; one without is this machine's."""
    assert query.moment("2030-01-31T18:00+02:00") == datetime(2030, 1, 31, 16, tzinfo=UTC)
    assert query.moment("2030-01-31") == datetime(2030, 1, 31).astimezone(UTC)


def test_one_that_cannot_be_read():
    """One archived object, or one whose key is another's, is listed without its state; if all are, that is an error."""
    bucket = Bucket()
    bucket.put("a", age=2)
    bucket.put("b", age=1)
    denied = Fault(AccessDenied("", status=403), "GET", f"{PREFIX}a", times=-1)
    bucket.store.faults.append(denied)
    found = bucket.inventory.newest(Filter(), 10)
    assert [(one.id, one.state) for one in found] == [("b", "SUCCESS"), ("a", None)]
    assert len(bucket.inventory.unreadable) == 1
    denied.key = ""
    with pytest.raises(AccessDenied):
        bucket.inventory.newest(Filter(), 10)
