"""The tree of a chord over the in-memory store: shape, looks, summaries, claim."""

import inspect
import random
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.chords import Chords, Decision, Manifest, follow
from celery_s3.chords.parts import INLINE_BYTES, pack_summary, unpack_summary
from celery_s3.chords.tree import FAN_IN, Memory, Shape, Tree
from celery_s3.errors import AccessDenied, PreconditionFailed
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.parallel import Pool
from celery_s3.store.requests import Put


class World:
    """A chord of ``size`` members, timers that wait for the test, and what was sent."""

    def __init__(self, size, clock=None):
        self.now = 1_000_000.0
        self.store = MemoryStore(clock=lambda: self.now)
        self.sent = []
        self.chords = self.another()
        self.manifest = Manifest(tuple(f"t{index}" for index in range(size)), None, b"{}")
        self.ticket = self.chords.open("g", self.manifest)

    def another(self):
        """What another process has."""
        return Chords(self.store, Pool(1), "base/celery-chords/", lease=30, clock=lambda: self.now)

    def act(self, parts, manifest, perhaps_sent):
        values = [payload.decode() for part in parts for payload in part]
        return lambda: self.sent.append(values) or "sent"

    def finish(self, index, act=None):
        delivery = self.chords.deliver(self.ticket, f"t{index}", index, f"v{index}".encode())
        delivery.climb_quietly()
        complete = delivery.climb()
        if complete:
            Decision(self.chords, self.ticket, *complete, act or self.act).go()

    def requests(self, verb):
        return sum(one == verb for one, _ in self.store.requests)


def values(size):
    return [f"v{index}" for index in range(size)]


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 64, 65, 1000, 1024, 1025, 1056])
@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_body_is_sent_once_with_all_values_in_order(size, order):
    """Whatever the size and the order in which members finish: one body, all values, in the header's order."""
    world = World(size)
    members = list(range(size))
    if order != "forward":
        members.reverse() if order == "backward" else random.Random(size).shuffle(members)
    for index in members:
        world.finish(index)
    assert world.sent == [values(size)]


@pytest.mark.parametrize("size", [64, 1000])
@pytest.mark.parametrize("order", ["forward", "random"])
def test_requests(size, order):
    """Per member one PUT and at most 4 GETs on average, 0.04 PUT of summaries, a small constant, and no LIST."""
    world = World(size)
    members = list(range(size))
    if order == "random":
        random.Random(1).shuffle(members)
    for index in members:
        world.finish(index)
    assert world.requests("PUT") <= size * 1.04 + 6
    assert world.requests("GET") <= size * 4
    assert world.requests("LIST") == 0
    assert world.requests("DELETE_OBJECTS") <= 2


@pytest.mark.parametrize("size", [1, 2, 32, 33, 1000, 1024])
@pytest.mark.parametrize("told", ["first", "last"])
@pytest.mark.parametrize("order", ["forward", "random"])
def test_a_generated_header(size, told, order):
    """A header whose size is told before its last member is sent, early or when all others have ended: the same."""
    world = World(size)
    world.store.delete("base/celery-chords/g/manifest")
    ticket = world.chords.begin("g", replace(world.manifest, ids=()))
    members = list(range(size - 1))
    if order == "random":
        random.Random(size).shuffle(members)
    processes = [world.another() for _ in range(4)]

    def finish(index, ticket):
        world.chords = processes[index * 7 % 4]
        world.ticket = ticket
        world.finish(index)

    def close():
        return world.another().close(ticket, world.manifest, numbered=True)

    if told == "first":
        last = close()
        for index in [*members[: size // 2], size - 1, *members[size // 2 :]]:
            finish(index, last if index == size - 1 else ticket)
    else:
        for index in members:
            finish(index, ticket)
        assert not world.sent
        finish(size - 1, close())
    assert world.sent == [values(size)]
    left = [entry.key.rpartition("/")[2] for entry in world.store.list("base/celery-chords/")]
    assert left == ["claim", "manifest"]
    assert world.requests("GET") <= (4 if order == "forward" else 6) * size + 10


def test_only_manifest_and_claim_stay():
    """Once the body is sent, the parts are gone; manifest and claim stay as a tombstone."""
    world = World(40)
    for index in range(40):
        world.finish(index)
    left = [entry.key for entry in world.store.list("base/celery-chords/")]
    assert left == ["base/celery-chords/g/claim", "base/celery-chords/g/manifest"]


def test_late_duplicate_changes_nothing():
    """A member that is delivered again after the end sends nothing, even if all of them are."""
    world = World(3)
    for index in (0, 1, 2, 1, 0, 2):
        world.finish(index)
    assert world.sent == [values(3)]


def test_first_part_of_a_slot_stands():
    """A member that ran twice with different values counts with its first one."""
    world = World(2)
    world.chords.deliver(world.ticket, "t0", 0, b"first")
    world.chords.deliver(world.ticket, "t0", 0, b"second")
    world.finish(1)
    assert world.sent == [["first", "v1"]]


def test_duplicate_that_completes_the_node_reads_the_part_that_stands():
    """A duplicate whose part was refused goes up with the part that stands there."""
    world = World(2)
    world.chords.deliver(world.ticket, "t0", 0, b"first")
    world.chords.deliver(world.ticket, "t1", 1, b"other")
    world.finish(0)
    assert world.sent == [["first", "other"]]


def test_large_values_are_read_once():
    """A value above the limit is not carried up the tree, and still arrives."""
    size = 2 * FAN_IN
    world = World(size)
    large = b"x" * (INLINE_BYTES + 1)
    for index in range(size):
        delivery = world.chords.deliver(world.ticket, f"t{index}", index, large if index == 5 else b"v")
        complete = delivery.climb()
    Decision(world.chords, world.ticket, *complete, world.act).go()
    assert len(world.sent[0][5]) == INLINE_BYTES + 1
    summaries = [key for verb, key in world.store.requests if verb == "PUT" and "/g/1/" in key]
    assert len(summaries) == 2


def test_claim_of_a_dead_owner_is_taken_over_after_its_lease():
    """Who meets an undecided claim leaves it; who mends sends when its lease is over."""
    world = World(2)
    world.finish(0)

    def die(*_):
        raise SystemExit

    with pytest.raises(SystemExit):
        world.finish(1, act=die)
    world.finish(1)
    world.now += 29
    assert not follow(world.chords, world.ticket, world.act)
    assert world.sent == []
    world.now += 2
    assert follow(world.chords, world.ticket, world.act)
    assert world.sent == [values(2)]
    assert not [entry.key for entry in world.store.list("") if "/now/" in entry.key]


def test_claim_that_is_alive_is_left_alone():
    """Before the lease is over nobody else sends."""
    world = World(1)
    claim = world.chords.claim("g")
    assert claim.acquire() is None
    world.finish(0)
    assert world.sent == []
    assert claim.holds()
    assert claim.mark("sent")
    world.now += 100
    assert follow(world.chords, world.ticket, world.act)
    assert world.sent == []


def test_owner_that_lost_its_claim_does_not_send():
    """An owner that slept past its lease finds its claim gone and stops."""
    world = World(1)
    slow, fast = world.chords.claim("g"), world.chords.claim("g")
    assert slow.acquire() is None
    world.now += world.chords.lease + 1
    held = fast.acquire()
    assert fast.take_over(held)
    assert not slow.holds()
    assert fast.holds()


def test_an_owner_asks_again_only_after_half_its_lease():
    """A claim that is young enough costs no request before the body is sent; an older one is renewed."""
    world = World(1)
    claim = world.chords.claim("g")
    assert claim.acquire() is None
    puts = world.requests("PUT")
    world.now += world.chords.lease / 2 - 1
    assert claim.holds()
    assert world.requests("PUT") == puts
    world.now += 1
    assert claim.holds()
    assert world.requests("PUT") == puts + 1
    assert claim.holds()
    assert world.requests("PUT") == puts + 1


def test_a_decided_chord_stays_decided():
    """The same frozen chord applied again: no ticket, and what late duplicates of its members deliver sends nothing."""
    world = World(2)
    for index in (0, 1):
        world.finish(index)
    assert world.chords.open("g", world.manifest) is None
    for index in (1, 0):
        world.finish(index)
    assert world.sent == [values(2)]


def test_a_group_id_is_one_chord():
    """Another chord with the same group id is refused, decided or not: parts of two chords would be one's values."""
    world = World(2)
    other = replace(world.manifest, ids=("x", "y"))
    with pytest.raises(PreconditionFailed):
        world.chords.open("g", other)
    for index in (0, 1):
        world.finish(index)
    with pytest.raises(PreconditionFailed):
        world.chords.open("g", other)


def test_redelivered_applier_joins_the_chord_in_progress():
    """An applier that is run again while its chord is under way does not start another."""
    world = World(2)
    world.finish(0)
    assert world.chords.open("g", world.manifest) == world.ticket
    world.finish(1)
    assert world.sent == [values(2)]


def test_members_without_index_are_found_in_the_manifest():
    """A chord that is not flat takes the slot from the manifest."""
    world = World(3)
    ticket = type(world.ticket)("g", 3, flat=False)
    for index in range(3):
        delivery = world.chords.deliver(ticket, f"t{index}", 0, f"v{index}".encode())
        complete = delivery.climb()
        if complete:
            Decision(world.chords, ticket, *complete, world.act).go()
    assert world.sent == [values(3)]
    assert world.chords.deliver(ticket, "stranger", 0, b"") is None


def test_added_tasks_are_waited_for():
    """A member's part names the tasks that it added; the body is sent once theirs are there, values behind its own."""
    world = World(2)
    adding = world.ticket.adding("t0", 0, ["extra"])
    added = world.chords.deliver(adding, "extra", 0, b"more")
    assert added.climb() is None
    delivery = world.chords.deliver(adding, "t0", 0, b"v0")
    assert delivery.climb() is None
    world.finish(1)
    assert world.sent == [["v0", "more", "v1"]]
    assert [entry.key for entry in world.store.list("base/celery-chords/g/added/")] == []


def test_added_task_that_comes_last_goes_up():
    """Whoever is last sends, be it a task that a member added."""
    world = World(1)
    adding = world.ticket.adding("t0", 0, ["extra"])
    assert world.chords.deliver(adding, "t0", 0, b"v0").climb() is None
    tree, leaves = world.chords.deliver(adding, "extra", 0, b"more").climb()
    Decision(world.chords, world.ticket, tree, leaves, world.act).go()
    assert world.sent == [["v0", "more"]]


def test_without_a_manifest_nothing_is_sent():
    """Where the chord was cleaned up, a late member sends nothing."""
    world = World(1)
    world.store.delete("base/celery-chords/g/manifest")
    world.finish(0)
    assert world.sent == []


@pytest.mark.parametrize("processes", [2, 8])
@pytest.mark.parametrize("size", [64, 1000])
def test_requests_of_several_processes(size, processes):
    """In order, four reads per member are enough however many processes share the work."""
    world = World(size)
    everybody = [world.chords, *(world.another() for _ in range(processes - 1))]
    chance = random.Random(1)
    for index in range(size):
        world.chords = chance.choice(everybody)
        world.finish(index)
    assert world.sent == [values(size)]
    assert world.requests("GET") <= size * 4
    assert world.requests("LIST") == 0


def test_the_last_of_a_node_reads_ahead():
    """Whoever is likely to complete a node reads the others' parts with its own write, and asks for none of them twice.

    A process that knows little of the node does not: each of many would read the same.
    """
    world = World(16)
    here, there = world.chords, world.another()
    for index in range(15):
        world.chords = here if index % 2 else there
        world.finish(index)
    before = world.requests("GET")
    delivery = here.deliver(world.ticket, "t15", 15, b"v15")
    assert sorted(delivery._foreseen) == list(range(0, 15, 2))
    assert world.requests("GET") == before + 8
    _, leaves = delivery.climb()
    assert world.requests("GET") == before + 8
    assert len(leaves) == 16
    stranger = world.another().deliver(world.ticket, "t14", 14, b"v14")
    assert stranger._foreseen is None


def test_a_large_value_is_looked_at_and_read_once(monkeypatch):
    """A look reads the head of a part; a value too large for a summary is read when the body is about to be sent."""
    world = World(FAN_IN + 1)
    large = b"x" * (INLINE_BYTES * 20)
    read = []
    get = world.store.get
    monkeypatch.setattr(world.store, "get", lambda *args, **kw: read.append(get(*args, **kw)) or read[-1])
    for index in range(FAN_IN + 1):
        delivery = world.chords.deliver(world.ticket, f"t{index}", index, large)
        world.chords = world.another()
        complete = delivery.climb()
    Decision(world.chords, world.ticket, *complete, world.act).go()
    assert world.sent == [[large.decode()] * (FAN_IN + 1)]
    whole = [found for found in read if len(found.body) > len(large)]
    assert len(whole) == FAN_IN + 1
    assert all(len(found.body) <= INLINE_BYTES + 1 for found in read if found not in whole and "/1/" not in found.key)


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("size", [64, 1000])
def test_requests_in_random_order(size, processes):
    """In no order at all, four reads per member are enough, however many processes share the work."""
    world = World(size)
    everybody = [world.chords, *(world.another() for _ in range(processes - 1))]
    chance = random.Random(size)
    for index in chance.sample(range(size), size):
        world.chords = chance.choice(everybody)
        world.finish(index)
    assert world.sent == [values(size)]
    assert world.requests("GET") <= size * 4


class AtOnce(MemoryStore):
    """A bucket that answers nobody before everybody is there: all threads have written their part, then looked."""

    def __init__(self, threads):
        super().__init__()
        self.threads = threads
        self.written = threading.Barrier(threads)
        self.looking = threading.Semaphore(0)
        self.looked = threading.Event()
        self.ended = threading.Semaphore(0)
        self.claimed = False

    def send(self, request):
        found = super().send(request)
        if "/0/" in request.key and isinstance(request, Put):
            self.written.wait(30)
        elif request.key.endswith("/claim") and not self.claimed:
            self.claimed = True
            assert all(self.ended.acquire(timeout=30) for _ in range(self.threads - 1))
        elif not request.key.endswith("/manifest"):
            assert self.looked.wait(30)
        return found


def test_members_that_end_at_once_in_one_process():
    """Of a hundred threads, one looks at each node and one claims: each part is read once at most, and all go home."""
    size = 100
    world = World(size)
    world.store = world.chords.store = store = AtOnce(size)
    world.ticket = world.chords.open("g", world.manifest)
    store.requests.clear()
    memory = world.chords._memory.get()
    begin, begun = memory.begin, []

    def counted(name):
        mine = begin(name)
        begun.append(name)
        if len(begun) == size:
            store.looked.set()
        return mine

    memory.begin = counted

    def member(index):
        world.finish(index)
        store.ended.release()

    threads = [threading.Thread(target=member, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert world.sent == [values(size)]
    put, read = ([key for verb, key in store.requests if verb == one] for one in ("PUT", "GET"))
    assert len([key for key in put if key.endswith("/claim")]) == 2
    assert len(put) == size + 4 + 2
    assert len([key for key in read if "/0/" in key]) <= size
    assert len(read) <= size + 20


def test_who_comes_while_another_one_looks():
    """Whoever leaves a node to another thread is seen by that one's next look, which begins after it has come."""
    world = World(2)
    first, last = (world.chords.deliver(world.ticket, f"t{index}", index, b"v") for index in (0, 1))
    read = Tree.read_node
    looks = []

    def looked(tree, *args):
        looks.append(read(tree, *args))
        if len(looks) == 1:
            assert last.climb() is None
            return None  # as if it had been asked for before it was there
        return looks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tree, "read_node", looked)
        assert first.climb() is not None
    assert len(looks) == 2


def test_an_error_leaves_a_node_to_the_others():
    """Who could not look is not looking any more: the next one does."""
    world = World(2)
    delivery = world.chords.deliver(world.ticket, "t0", 0, b"v0")
    world.store.faults.append(Fault(AccessDenied("", "get"), verb="GET"))
    with pytest.raises(AccessDenied):
        delivery.climb()
    world.finish(1)
    assert world.sent == [values(2)]


def test_memory_is_bounded_by_bytes():
    """What a process remembers is bounded; what it had to forget it reads again."""
    memory = Memory(limit=10_000)
    for number in range(1000):
        memory.remember(f"{number}", {0: b"x" * 100})
    kept = [number for number in range(1000) if memory.node(f"{number}")]
    assert kept == list(range(1000 - len(kept), 1000))
    assert 20 <= len(kept) <= 40
    memory.remember("999", {0: b"x" * 100, 1: b"y"})
    assert memory.node("999") == {0: b"x" * 100, 1: b"y"}


def test_a_chord_applied_anew_is_not_taken_for_the_old_one():
    """After its tombstone is removed a frozen chord has the old keys again: what is remembered of it does not count."""
    world = World(3)
    for index in range(3):
        world.finish(index)
    world.store.delete_many([entry.key for entry in world.store.list("base/celery-chords/")])
    world.ticket = world.chords.open("g", replace(world.manifest, nonce="another"))
    world.finish(0)
    assert world.sent == [values(3)]
    world.finish(1)
    world.finish(2)
    assert world.sent == [values(3)] * 2


def test_the_lease_of_a_claim_is_that_of_its_owner():
    """Whoever has a shorter lease waits for the owner's: its settings decided how long sending may take."""
    world = World(1)
    owner, other = world.chords.claim("g"), world.another()
    owner.lease = 200
    assert owner.acquire() is None
    other.lease = 10
    world.now += 100
    world.chords = other
    world.finish(0)
    assert not follow(other, world.ticket, world.act)
    assert world.sent == []
    world.now += 101
    assert follow(other, world.ticket, world.act)
    assert world.sent == [["v0"]]


def test_tasks_added_one_after_another(request):
    """Each task of a long row adds the next one: two reads for each, and no depth is too deep."""
    world = World(1)
    ticket, size = world.ticket.adding("t0", 0, ["a0"]), 300
    # a call for each task of the row would be too many
    request.addfinalizer(partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(len(inspect.stack(0)) + size - 100)
    assert world.chords.deliver(ticket, "t0", 0, b"v").climb() is None
    for number in range(size):
        ticket = ticket if number == size - 1 else ticket.adding(f"a{number}", 0, [f"a{number + 1}"])
        complete = world.chords.deliver(ticket, f"a{number}", 0, b"v").climb()
    Decision(world.chords, world.ticket, *complete, world.act).go()
    assert world.sent == [["v"] * (size + 1)]
    assert world.requests("GET") <= 3 * size


def test_large_values_are_read_at_the_same_time():
    """Whoever has claimed reads what was too large for the summaries, abreast; whoever has lost reads none of it."""
    world = World(40)
    world.chords.pool = Pool(16)
    large = b"x" * (INLINE_BYTES * 2)
    for index in range(40):
        complete = world.chords.deliver(world.ticket, f"t{index}", index, large).climb()
    assert world.chords.claim("g").acquire() is None
    before = world.requests("GET")
    assert not Decision(world.chords, world.ticket, *complete, world.act).go()
    assert world.sent == []
    assert world.requests("GET") == before + 2


@given(st.lists(st.none() | st.binary(max_size=50), max_size=40))
def test_summary_round_trip(leaves):
    """A summary gives its parts back."""
    assert unpack_summary(pack_summary(leaves)) == leaves


@given(st.integers(1, 40_000))
def test_shape(size):
    """Levels end in one node, and the slots of a level cover all members once."""
    shape = Shape(size)
    assert shape.counts[-1] <= FAN_IN
    assert shape.node(shape.top, 0) == range(shape.counts[-1])
    for level, count in enumerate(shape.counts):
        covered = [leaf for slot in range(count) for leaf in shape.leaves(level, slot)]
        assert covered == list(range(size))


def test_owner_that_finds_the_parts_gone_decides():
    """Whoever takes over after a slow owner has cleaned up leaves no undecided claim behind."""
    world = World(1)
    slow = world.chords.claim("g")
    delivery = world.chords.deliver(world.ticket, "t0", 0, b"v0")
    tree, _ = delivery.climb()
    assert slow.acquire() is None
    world.store.delete_many([tree.key(0, 0)])
    world.now += 100
    Decision(world.chords, world.ticket, tree, [None], world.act, mending=True).go()
    assert world.sent == []
    assert world.chords.claim("g").read().decided
