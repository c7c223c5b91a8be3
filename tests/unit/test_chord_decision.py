"""One party's way from the claim to the mark, with trouble at every step: what it has done it does not do again."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from chord_world import LEASE, World
from kombu.exceptions import OperationalError

from celery_s3.chords.claim import PUBLISHING, Claim, lease_for
from celery_s3.chords.decision import PAUSE, Decision
from celery_s3.chords.mender import TRIES, Left
from celery_s3.errors import BodyNotSent, ObjectMissing, ServerFault
from celery_s3.store.deadline import patient
from celery_s3.store.memory import Fault
from celery_s3.store.retrying import Retrying

CLAIM = "base/celery-chords/g/claim"
MANIFEST = "base/celery-chords/g/manifest"
DAY = 86_400


class Scene(World):
    """A chord of one member whose part is there; ``broker``: what each try to send raises, ``None`` where it works."""

    def __init__(self):
        super().__init__(1)
        self.broker = []
        self.sent = []
        self.told = []
        self.slept = []
        self.given_up = []
        self.chords.sleep = self.sleep
        assert self.chords.deliver(self.ticket, "t0", 0, b"v0") is not None

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def act(self, parts, manifest, perhaps_sent):
        self.told.append(perhaps_sent)

        def ready():
            if self.broker and (trouble := self.broker.pop(0)) is not None:
                raise trouble
            self.sent.append([payload for part in parts for payload in part])
            return "sent"

        return ready

    def decision(self, **options):
        tree = self.chords.tree(self.ticket)
        options = {"give_up": self.given_up.append, "mending": True, **options}
        return Decision(self.chords, self.ticket, tree, tree.climb(0, 0, None), self.act, **options)

    def another(self):
        """Another process, which has seen that the chord is complete."""
        return self.decision()

    def fail(self, key, times=1, **options):
        self.store.faults.append(Fault(ServerFault("down"), key=key, times=times, **options))

    @property
    def state(self):
        held = Claim(self.store, CLAIM, LEASE).read()
        return held and held.state


@pytest.fixture
def scene():
    return Scene()


def go_until_done(decision, scene, tries=20):
    """As it is gone on with after trouble; how often that took."""
    for number in range(tries):
        try:
            decision.go()
        except ServerFault:
            scene.now += 1
        else:
            return number
    raise AssertionError("never done")


# -- the store stumbles


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE_OBJECTS"])
@pytest.mark.parametrize("number", range(3))
def test_trouble_at_any_step(scene, verb, number):
    """Whatever request fails, and whenever: gone on with, the body is sent once, the claim marked, the part gone."""
    decision = scene.decision()
    scene.store.faults.append(Fault(ServerFault("down"), verb=verb, after=number))
    go_until_done(decision, scene)
    scene.store.faults.clear()
    assert scene.sent == [[b"v0"]]
    assert (scene.state, scene.parts()) == ("sent", [])


def test_a_mark_that_is_refused_for_longer_than_the_lease(scene):
    """The owner remembers that it has sent, and nobody else sends again: the parts are gone."""
    decision, other = scene.decision(), scene.another()
    scene.fail(CLAIM, verb="PUT", times=-1, after=1)  # the claim itself is made
    with pytest.raises(ServerFault):
        decision.go()
    assert (scene.sent, scene.state, scene.parts()) == ([[b"v0"]], "claimed", [])
    scene.now += LEASE + 1
    with pytest.raises(ServerFault):
        other.go()
    scene.store.faults.clear()
    other.go()
    decision.go()
    assert scene.sent == [[b"v0"]]
    assert scene.state == "sent"


def test_a_claim_is_not_taken_over_while_the_store_stumbles(scene):
    """Its owner may be alive, and wait for the store: a refused take-over is not tried again at once."""
    assert scene.another()._claim.acquire() is None
    scene.now += LEASE + 1
    slept = []
    scene.chords.store = Retrying(scene.store, sleep=slept.append)
    decision = scene.decision()
    scene.fail(CLAIM, verb="PUT", times=2, after=1)  # after the try to make it
    with patient(60), pytest.raises(ServerFault):
        decision.go()
    assert slept == []


def test_that_an_owner_before_may_have_sent_is_not_forgotten(scene):
    """Who took a claim over and met trouble then still knows that its first owner may have sent."""
    assert scene.another()._claim.acquire() is None
    scene.now += LEASE + 1
    decision = scene.decision()
    scene.broker = [ServerFault("down")]
    with pytest.raises(ServerFault):
        decision.go()
    decision.go()
    assert scene.told == [True, True]


def test_a_claim_that_was_lost_meanwhile(scene):
    """Who could not send for longer than its lease, and was overtaken, sends nothing."""
    decision, other = scene.decision(), scene.another()
    scene.broker = [BodyNotSent("away")]
    with pytest.raises(BodyNotSent):
        decision.go()
    scene.now += LEASE + 1
    other.go()
    decision.go()
    assert len(scene.sent) == 1
    assert scene.state == "sent"


# -- the broker is away


def test_a_broker_that_is_away_is_tried_again(scene):
    """The claim is kept, renewed where it grows old, and the body sent as soon as the broker is back: once."""
    scene.broker = [BodyNotSent("away")] * 20
    decision = scene.decision()
    with patient(3600):
        decision.go()
    assert (len(scene.sent), scene.state, scene.told) == (1, "sent", [False])
    assert len(scene.slept) == 20
    assert max(scene.slept) == PAUSE
    assert sum(scene.slept) > 2 * LEASE
    other = scene.store.requests.count(("PUT", CLAIM))
    assert 2 + sum(scene.slept) / LEASE <= other <= 2 + 4 * sum(scene.slept) / LEASE


def test_while_an_owner_waits_for_the_broker_nobody_takes_over(scene):
    """Whoever else looks meanwhile finds a claim that is alive."""
    scene.broker = [BodyNotSent("away")] * 20
    looks = []

    def sleep(seconds):
        scene.sleep(seconds)
        scene.chords.sleep = scene.sleep
        if len(scene.slept) > 10:
            scene.another().go()
            looks.append(len(scene.sent))
        scene.chords.sleep = sleep

    scene.chords.sleep = sleep
    with patient(3600):
        scene.decision().go()
    assert looks
    assert set(looks) == {0}
    assert len(scene.sent) == 1


def test_patience_comes_to_its_end(scene):
    """Nothing has failed then: the claim is undecided, and whoever goes on knows that nothing was sent."""
    scene.broker = [BodyNotSent("away")]
    decision = scene.decision()
    with pytest.raises(BodyNotSent):
        decision.go()
    assert (scene.state, scene.parts(), scene.given_up) == ("claimed", [0], [])
    scene.now += 10 * LEASE
    decision.go()
    assert (scene.sent, scene.told) == ([[b"v0"]], [False, False])


@pytest.mark.parametrize(("expires", "fails"), [(None, False), (15 * DAY, True), (30 * DAY, False)])
def test_the_chord_s_own_time(scene, expires, fails):
    """A chord whose body no broker takes until `result_chord_expires` is over fails, and says why."""
    scene.chords.expires = expires
    scene.now += 20 * DAY
    scene.broker = [reason := BodyNotSent("away")]
    decision = scene.decision()
    if fails:
        decision.go()
        assert scene.given_up == [reason]
        assert scene.state == "failed"
    else:
        with pytest.raises(BodyNotSent):
            decision.go()
        assert (scene.given_up, scene.state) == ([], "claimed")


def test_the_lease_covers_one_call():
    """It depends on the broker's time-out alone: no `retry_policy` makes a call longer, nor does joining count."""
    with Celery("unit", set_as_current=False) as app:
        default = lease_for(app.conf)
        app.conf.update(
            result_chord_join_timeout=3600, task_publish_retry_policy={"max_retries": None, "interval_max": 60}
        )
        assert lease_for(app.conf) == default
        assert 30 <= default <= 60
        app.conf.broker_connection_timeout = 30
        assert lease_for(app.conf) > 4 * 30
    assert PUBLISHING["max_retries"] == 1


# -- who cannot go on, and who never will


def test_going_on_raises_nothing(scene):
    """A soft time limit strikes once: the step is done again at once; other trouble is left to a message."""
    trouble = [SoftTimeLimitExceeded(), MemoryError()]

    def step():
        if trouble:
            raise trouble.pop(0)
        return scene.decision().go()

    def pursue():
        scene.mender.pursue(Left(scene.request(0).chord), step, scene.given_up.append)

    pursue()
    scene.mender.timers.flush()
    assert (len(scene.mender.told), scene.sent) == (1, [])
    pursue()
    assert (len(scene.mender.told), len(scene.sent)) == (1, 1)


def test_longer_and_longer_pauses(scene):
    """What is handed on again and again comes more seldom, and is told in the end."""
    pauses = []
    for tries in range(TRIES):
        scene.mender.leave(Left(scene.request(0).chord, tries=tries))
        ((seconds, _),) = scene.mender.timers.entries
        scene.mender.timers.entries.clear()
        pauses.append(seconds)
    assert pauses == sorted(pauses)
    assert pauses[0] == LEASE + 1
    scene.mender.leave(Left(scene.request(0).chord, tries=TRIES))
    assert scene.mender.timers.entries == []


def test_a_broker_that_stays_away(scene, caplog):
    """The chord is left undecided after `outage_patience`, and who cannot be told is told of in the log."""

    def away(*_, **__):
        raise OperationalError("away")

    scene.broker = [BodyNotSent("away")]
    scene.mender._send = away
    scene.mender.pursue(Left(scene.request(0).chord), scene.decision().go, scene.given_up.append)
    scene.mender.timers.flush()
    assert "Chord g is left undecided, and no worker could be told" in caplog.text
    assert (scene.state, scene.given_up) == ("claimed", [])


def test_a_manifest_that_is_gone(scene):
    """The body fails, and its error says where the chord was looked for."""
    decision = scene.decision()
    scene.store.delete(MANIFEST)
    decision.go()
    assert (scene.sent, scene.state) == ([], "failed")
    ((reason,)) = scene.given_up
    assert isinstance(reason, ObjectMissing)
    assert "no manifest under base/celery-chords/, where it was applied: in another bucket, or a lifecycle rule" in str(
        reason
    )
