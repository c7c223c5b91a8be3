"""The sweep on a bucket in memory: what has expired goes, everything else stays, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.errors import AccessDenied, BadRequest, Interrupted, ServerFault
from celery_s3.expiry.clock import server_clock
from celery_s3.expiry.stale_uploads import StaleUploads
from celery_s3.expiry.sweep import Sweep, areas
from celery_s3.expiry.terms import DAY, Terms
from celery_s3.keys import Layout
from celery_s3.metadata import SAVED, expires_at, result_metadata, term_asked, term_metadata, term_of
from celery_s3.store.api import Object
from celery_s3.store.clients.control import Upload
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool

LAYOUT = Layout()
#: A time at which a second begins.
NOW = 1_700_000_000.0


class Uploads:
    """Uploads that were given up: ``standing``, unless asking for them is refused with ``error``."""

    def __init__(self):
        self.standing = []
        self.error = self.asked = None

    def stale(self, now):
        self.asked = now
        if self.error is not None:
            raise self.error
        return list(self.standing)

    def abort(self, upload):
        self.standing.remove(upload)


class Bucket:
    """A store whose server has a clock, and sweeps of it."""

    def __init__(self, **options):
        self.time = NOW
        self.store = MemoryStore(clock=lambda: self.time, **options)
        self.pool = Pool(1)
        self.uploads = Uploads()

    def put(self, id, age=0.0, state="SUCCESS", own=None, body=b"a result"):
        """Store a result that long before now."""
        return self.write(LAYOUT.results + id, age, result_metadata(state, expires=own), body)

    def write(self, key, age=0.0, metadata=None, body=b"bytes"):
        now, self.time = self.time, self.time - age
        self.store.put(key, body, metadata=metadata)
        self.time = now
        return key

    def sweep(self, results=DAY, failures=DAY, messages=15 * DAY, remains=(), **options):
        terms = Terms(results, failures, 15 * DAY, 15 * DAY, messages)
        chosen = {name: options.pop(name) for name in ("batch", "thorough", "adopt") if name in options}
        now = options.pop("now", lambda: self.time)
        listing = areas(LAYOUT, terms, **chosen)
        return Sweep(self.store, self.pool, listing, lambda: iter(remains), self.uploads, now=now, **options)

    @property
    def keys(self):
        return {entry.key for entry in self.store.list("")}

    def verbs(self):
        return [verb for verb, _ in self.store.requests]


@pytest.fixture
def bucket():
    return Bucket()


# -- what goes


def test_what_has_expired_goes(bucket):
    """Expired results, groups and messages are deleted and told by kind; the rest stays, and is not even read."""
    old = [bucket.put("old", DAY + 1), bucket.write(LAYOUT.groups + "g", DAY + 1, SAVED)]
    old.append(bucket.write(LAYOUT.messages + hashlib.sha256(b"m").hexdigest(), 15 * DAY + 1))
    young = {bucket.put("young", DAY - 1), bucket.write(LAYOUT.messages + "0" * 64, DAY), "celery-s3-probe"}
    bucket.write("celery-s3-probe", 999 * DAY)
    bucket.store.requests.clear()
    done = bucket.sweep().run()
    assert {kind: part.count for kind, part in done.deleted.items()} == {"results": 1, "groups": 1, "messages": 1}
    assert (done.count, done.size, done.looked, done.complete) == (3, len(b"a result") + 10, 3, True)
    assert bucket.verbs().count("GET") == 3
    assert bucket.keys == young


@pytest.mark.parametrize("name", ["notes.txt", "0" * 63, "0" * 64 + ".txt", "0" * 64 + "/x", "A" * 64])
def test_other_peoples_messages_stay(bucket, name):
    """What no message can point to was put there by somebody else."""
    key = bucket.write(LAYOUT.messages + name, 999 * DAY)
    bucket.sweep().run()
    assert key in bucket.keys


def test_messages_stay_without_a_claim_check(bucket):
    """Where large messages do not go to the bucket, nothing under that prefix is even listed."""
    key = bucket.write(LAYOUT.messages + "0" * 64, 999 * DAY)
    bucket.store.requests.clear()
    bucket.sweep(messages=None).run()
    assert ("LIST", LAYOUT.messages) not in bucket.store.requests
    assert key in bucket.keys


def test_boundary(bucket):
    """A result goes when its last second is over, as it reads as missing, and not before."""
    bucket.put("one", DAY)
    for later in (0, 0.5, 0.999):
        bucket.time = NOW + later
        assert bucket.sweep().run().count == 0
    bucket.time = NOW + 1
    assert bucket.sweep().run().count == 1


def test_own_terms(bucket):
    """A longer term of its own keeps a result; a shorter one ends it where every result is looked at."""
    kept = {bucket.put("longer", 9 * DAY, own=10 * DAY), bucket.put("ever", 9999 * DAY, own=0)}
    shorter = bucket.put("shorter", 100, own=60)
    garbage = bucket.write(LAYOUT.results + "garbage", 9 * DAY, {"celery-expires": "soon"})
    bucket.sweep().run()
    assert bucket.keys == kept | {shorter}
    assert garbage not in bucket.keys
    bucket.sweep(thorough=True).run()
    assert bucket.keys == kept


def test_what_another_backend_wrote(bucket):
    """However old, it stays and is counted, until a sweep is told to adopt it; ours beside it go as ever."""
    theirs = {bucket.write(LAYOUT.results + "theirs", 400 * DAY), bucket.write(LAYOUT.groups + "theirs", 400 * DAY)}
    young = bucket.write(LAYOUT.results + "young", 60)
    bucket.put("ours", DAY + 1)
    bucket.write(LAYOUT.groups + "ours", DAY + 1, SAVED)
    for dry_run in (True, False):
        done = bucket.sweep(dry_run=dry_run).run()
        assert (done.count, done.foreign.count, done.foreign.size) == (2, 2, 10)
    assert bucket.keys == theirs | {young}
    done = bucket.sweep(adopt=True).run()
    assert (done.count, done.foreign.count, bucket.keys) == (2, 0, {young})


def test_own_terms_where_results_stay_for_ever(bucket):
    """Where results stay for ever, a sweep lists callers' files, and a thorough one deletes by terms of their own."""
    kept, own = bucket.put("kept", 999 * DAY), bucket.put("own", 100, own=60)
    bucket.store.requests.clear()
    bucket.sweep(results=None, failures=None, messages=None).run()
    assert bucket.store.requests == [("LIST", LAYOUT.files + "~sent/")]
    bucket.sweep(results=None, failures=None, thorough=True).run()
    assert bucket.keys == {kept}
    assert own not in bucket.keys


def test_files(bucket):
    """A file lives a day longer than its result; a caller's is gone after 16 days where results stay for ever."""
    name = "0" * 32
    task, caller = f"{LAYOUT.files}task/{name}", f"{LAYOUT.files}~sent/{name}"
    for age, results, kept in (
        (2 * DAY - 60, DAY, {task, caller}),
        (2 * DAY + 60, DAY, set()),
        (16 * DAY - 60, None, {task, caller}),
        (16 * DAY + 60, None, {task}),
    ):
        for key in (task, caller):
            bucket.write(key, age, {"celery-file": "x"})
        bucket.sweep(results=results, failures=results).run()
        assert bucket.keys == kept, (age, results)


def test_failures(bucket):
    """Failures that live shorter go early, those that live longer stay; their metadata tells."""
    early = bucket.put("early", 2 * DAY, state="FAILURE", own=DAY)
    success = bucket.put("success", 2 * DAY)
    late = bucket.put("late", 8 * DAY, state="FAILURE", own=30 * DAY)
    bucket.sweep(results=7 * DAY, failures=DAY).run()
    assert bucket.keys == {success, late}
    assert early not in bucket.keys


# -- what happens meanwhile


def during(bucket, verb, act):
    """Let ``act`` happen once, right before the first such request."""
    waiting = [act]

    def before(made, key):
        if made == verb and waiting:
            waiting.pop()()

    bucket.store._before = before


@pytest.mark.parametrize("verb", ["GET", "DELETE_OBJECTS"])
@pytest.mark.parametrize("batch", [1, 1000])
def test_rewritten_meanwhile(bucket, verb, batch):
    """A result that is written again between listing, look and deletion survives; its neighbours go."""
    keys = [bucket.put(str(number), DAY + 9) for number in range(3)]
    during(bucket, verb, lambda: bucket.write(keys[0], body=b"the new run"))
    done = bucket.sweep(batch=batch).run()
    assert bucket.store.get(keys[0]).body == b"the new run"
    assert done.count == 2
    assert bucket.keys == {keys[0]}


@pytest.mark.parametrize("verb", ["GET", "DELETE_OBJECTS"])
def test_gone_meanwhile(bucket, verb):
    """A result that is forgotten meanwhile is no error."""
    keys = [bucket.put(str(number), DAY + 9) for number in range(3)]
    during(bucket, verb, lambda: bucket.store.delete(keys[0]))
    bucket.sweep().run()
    assert bucket.keys == set()


@pytest.mark.parametrize("verb", ["LIST", "GET", "DELETE_OBJECTS"])
def test_two_sweeps(bucket, verb):
    """A second sweep at any moment of the first: both end, and what has expired is gone."""
    for number in range(5):
        bucket.put(f"old-{number}", DAY + 9)
    young = bucket.put("young", DAY - 9)
    during(bucket, verb, lambda: bucket.sweep().run())
    bucket.sweep().run()
    assert bucket.keys == {young}


@pytest.mark.parametrize("error", [Interrupted(), ServerFault()])
@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("verb", ["LIST", "GET", "DELETE_OBJECTS"])
def test_died_and_run_again(bucket, verb, landed, error):
    """A sweep that dies anywhere is simply run again."""
    for number in range(5):
        bucket.put(f"old-{number}", DAY + 9)
    young = bucket.put("young", DAY - 9)
    bucket.store.faults.append(Fault(error, verb, after=1, landed=landed))
    with pytest.raises(type(error)):
        bucket.sweep(batch=2).run()
    bucket.sweep(batch=2).run()
    assert bucket.keys == {young}


# -- bounds


def test_limit(bucket):
    """A limit is kept to the object, and said; the next sweep goes on."""
    for number in range(25):
        bucket.put(f"{number:02}", DAY + 9)
    done = bucket.sweep(batch=10).run(limit=13)
    assert (done.count, done.complete, len(bucket.keys)) == (13, False, 12)
    assert bucket.sweep(batch=10).run(limit=13).complete
    assert bucket.keys == set()


def test_time(bucket):
    """A sweep that has only so much time begins anywhere, goes round, and says when it did not come to its end."""
    for number in range(3000):
        bucket.put(f"{number * 2**32 // 3000:08x}", DAY + 9)
    clock = iter(range(100))
    done = bucket.sweep(batch=1000, clock=lambda: next(clock)).run(seconds=1.5)
    assert not done.complete
    assert 0 < len(bucket.keys) < 3000
    assert bucket.sweep(batch=1000, clock=lambda: 0).run(seconds=60).complete
    assert bucket.keys == set()


def test_dry_run(bucket):
    """A dry run tells exactly what a sweep would do, and deletes nothing."""
    keys = {bucket.put("old", DAY + 9), bucket.put("own", DAY + 9, own=0)}
    done = bucket.sweep(dry_run=True).run()
    assert (done.count, bucket.keys) == (1, keys)
    assert "DELETE_OBJECTS" not in bucket.verbs()


def test_forecast(bucket):
    """What is to be looked at is known beforehand, at the price of listings alone, and right."""
    for number in range(1500):
        bucket.put(f"{number:04}", DAY + 9 if number % 2 else 0)
    bucket.store.requests.clear()
    sweep = bucket.sweep(batch=100)
    suspects, requests = sweep.forecast()
    assert (suspects, set(bucket.verbs())) == (750, {"LIST"})
    bucket.store.requests.clear()
    sweep.run()
    made = bucket.verbs()
    assert {verb: made.count(verb) for verb in set(made)} == {"LIST": 5, "GET": 750, "DELETE_OBJECTS": 8}
    assert requests == {"LIST": 5, "GET": 750, "DELETE_OBJECTS": 8}


def test_chords(bucket):
    """What chords have left is deleted list by list, each only in the version that was listed."""
    manifest, claim = (
        bucket.write("celery-chords/g/manifest", 99 * DAY),
        bucket.write("celery-chords/g/claim", 99 * DAY),
    )
    entries = {entry.key: entry for entry in bucket.store.list("celery-chords/")}
    bucket.write(manifest, body=b"applied again")
    done = bucket.sweep(remains=[[entries[manifest]], [entries[claim]]]).run()
    assert bucket.keys == {manifest}
    assert done.deleted["chords"].count == 1


# -- clocks


ages = st.one_of(st.integers(0, 5 * DAY), st.floats(0, 5 * DAY), st.sampled_from([DAY - 1, DAY, DAY + 1, DAY + 2]))
owns = st.none() | st.sampled_from([0, 1, 60, DAY, DAY + 1, 3 * DAY]) | st.floats(0, 5 * DAY)
terms = st.none() | st.sampled_from([1, DAY, 2 * DAY]) | st.floats(0.5, 5 * DAY)


@given(
    now=st.floats(0.0, 4e9),
    objects=st.lists(st.tuples(ages, owns, st.sampled_from(["SUCCESS", "FAILURE", "STARTED"])), max_size=12),
    results=terms,
    failures=terms,
    thorough=st.booleans(),
)
def test_nothing_that_has_not_expired(now, objects, results, failures, thorough):
    """Whatever ages, terms and fractions of seconds: what goes has lived for its whole term, to the microsecond."""
    bucket = Bucket()
    bucket.time = max(now, 5 * DAY + 1)
    alive, dead = set(), set()
    for number, (age, own, state) in enumerate(objects):
        if own is None and state == "FAILURE" and failures != results:
            own = failures or 0.0
        key = bucket.put(str(number), age, state, own)
        term = results if own is None else own
        stored = datetime.fromtimestamp(int(bucket.time - age), UTC).timestamp()
        if not term or bucket.time < bucket.time - age + term:
            alive.add(key)
        elif bucket.time >= stored + 1 + term and (thorough or (results and term == results)):
            dead.add(key)
    bucket.sweep(results, failures, thorough=thorough).run()
    assert alive <= bucket.keys
    assert not dead & bucket.keys


zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"]).map(ZoneInfo)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=zones, allow_imaginary=False)


@given(moment=moments, term=st.integers(1, 400 * DAY), fold=st.booleans())
def test_time_zones(moment, term, fold):
    """In every time zone, also while its clocks are put forward or back, the end is so many seconds after the start."""
    modified = moment.replace(microsecond=0, fold=int(fold))
    found = Object("key", b"", 0, '"etag"', modified, term_metadata(term))
    end = expires_at(found, DAY)
    began = modified.astimezone(UTC)
    assert datetime.fromtimestamp(end, UTC) - began == timedelta(seconds=term + 1)


def test_the_hour_that_comes_twice():
    """A night of 25 hours is an hour longer than a day: a result of one day ends by elapsed time, not by the dial."""
    berlin = ZoneInfo("Europe/Berlin")
    stored = datetime(2026, 10, 24, 12, 0, tzinfo=berlin)
    end = datetime.fromtimestamp(expires_at(Object("k", b"", 0, "", stored), DAY), berlin)
    assert end == datetime(2026, 10, 25, 11, 0, 1, tzinfo=berlin)


class Control:
    """Knows how far this machine's clock is off, once it has asked something."""

    skew = None

    def region(self):
        return ""


@given(skew=st.floats(-5000, 5000), elapsed=st.floats(0, 5000), offset=st.floats(0, 0.999))
def test_the_servers_clock(skew, elapsed, offset):
    """However wrong this machine's clock is, now or later, the sweep's is the server's, and never ahead of it."""
    server, ticks = NOW + offset, iter([100.0, 100.0 + elapsed])

    control = Control()
    # as it is learned from a Date header, which has whole seconds
    control.skew = (server + skew) - int(server) - 0.5
    now = server_clock(control, wall=lambda: server + skew, clock=lambda: next(ticks))()
    assert server + elapsed - 1.5 <= now + 1e-3
    assert now <= server + elapsed


def test_a_server_without_a_clock():
    """A server that sends no Date is taken to have this machine's time."""

    assert server_clock(Control(), wall=lambda: NOW, clock=lambda: 5.0)() == NOW - 1


# -- terms of their own


class Request:
    id = "the-task"

    def __init__(self, value):
        self.headers = {"result_expires": value}


@pytest.mark.parametrize("value", [0, 1, 60, 0.5, 3600.0, 10**12])
def test_asked(value):
    """A number of seconds in the message's header is the result's term, and survives the user metadata exactly."""
    assert term_asked(Request(value)) == value
    assert term_of(term_metadata(value)) == value


@pytest.mark.parametrize("value", ["60", -1, True, float("nan"), float("inf"), [60], timedelta(1), "x" * 1000])
def test_asked_for_nonsense(value, caplog):
    """A value that makes no sense is warned about, with the task and the remedy, and changes nothing."""
    assert term_asked(Request(value)) is None
    (record,) = caplog.records
    assert "Task the-task: the message header result_expires is" in record.getMessage()
    assert len(record.getMessage()) < 250


@pytest.mark.parametrize("request_", [None, object(), type("Bunch", (), {"headers": None}), Request(None)])
def test_nothing_asked(request_, caplog):
    """Most messages say nothing, and some requests are none of Celery's."""
    assert term_asked(request_) is None
    assert not caplog.records


@given(st.floats(0, 1e15))
def test_metadata_is_exact(seconds):
    """What is written beside an object is what is read."""
    assert term_of(term_metadata(seconds)) == seconds


@given(st.text())
def test_metadata_of_others(text):
    """Garbage beside an object is no term, and no error."""
    own = term_of({"celery-expires": text})
    assert own is None or own >= 0


def test_an_offset_is_no_other_time():
    """The same moment in another zone ends at the same time."""
    moment = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    other = moment.astimezone(timezone(timedelta(hours=-9, minutes=-30)))
    assert expires_at(Object("k", b"", 0, "", moment), 60) == expires_at(Object("k", b"", 0, "", other), 60)


# -- uploads


def test_uploads_are_aborted(bucket):
    """What was given up is aborted and counted, also where there is nothing to delete; a dry run only counts."""
    bucket.uploads.standing = ["one", "two"]
    dry = bucket.sweep(dry_run=True).run()
    assert (dry.aborted, bucket.uploads.standing) == (2, ["one", "two"])
    done = bucket.sweep().run()
    assert (done.aborted, done.unseen, done.count, bucket.uploads.standing) == (2, "", 0, [])
    assert bucket.uploads.asked == NOW


@pytest.mark.parametrize("error", [AccessDenied("not you"), BadRequest("what is that?", status=501)])
def test_uploads_that_may_not_be_listed(bucket, error):
    """Where uploads are refused to be looked at, the rest is swept, and that is told."""
    bucket.uploads.error = error
    bucket.put("old", DAY + 1)
    done = bucket.sweep().run()
    assert (done.count, done.aborted, done.unseen) == (1, 0, error.reason)


def test_uploads_of_a_server_that_is_down(bucket):
    """A fault that passes is raised as everywhere; what was deleted before is deleted."""
    bucket.uploads.error = ServerFault("down")
    old = bucket.put("old", DAY + 1)
    with pytest.raises(ServerFault):
        bucket.sweep().run()
    assert old not in bucket.keys


def test_which_uploads_are_ours():
    """Those of results and of files, a day old by the server's clock; nobody else's, and none that may be under way."""
    places = Layout("b/")
    names = {
        "b/celery-task-meta-old": DAY + 1,
        "b/celery-task-meta-young": DAY - 1,
        f"b/celery-files/whose/{'0' * 32}": DAY + 1,
        "b/celery-files/holiday.mov": 9 * DAY,
        "b/celery-chords/film/1.mov": 9 * DAY,
        "b/other": 9 * DAY,
    }
    standing = [Upload(key, "id", datetime.fromtimestamp(NOW - age, UTC)) for key, age in names.items()]
    control = SimpleNamespace(uploads=lambda prefix: (one for one in standing if one.key.startswith(prefix)))
    found = [one.key for one in StaleUploads(control, places).stale(NOW)]
    assert found == ["b/celery-task-meta-old", f"b/celery-files/whose/{'0' * 32}"]
