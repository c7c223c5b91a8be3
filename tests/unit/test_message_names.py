"""What the names of messages' objects tell: with an encryption key, nothing to whoever lists the bucket."""

from __future__ import annotations

import base64
import hashlib

import pytest

from celery_s3.claimcheck.messages import Messages
from celery_s3.claimcheck.names import Names
from celery_s3.errors import MessageNotRead
from celery_s3.settings import Secret, Settings
from celery_s3.store.memory import MemoryStore
from celery_s3.store.parallel import Pool

OLD, NEW = (Secret(base64.b64encode(letter * 32).decode()) for letter in (b"o", b"n"))
KMS = Secret("kms://alias/results")
CONTENT = b'[["transfer", 100], {}]'
GUESS = hashlib.sha256(CONTENT).hexdigest()


def names(*keys, seal="encrypt"):
    return Names(Settings(bucket="bucket", seal_keys=keys, seal=seal))


def test_a_guess_cannot_be_checked():
    """Where messages are encrypted, nobody without the key can tell whether a name is that of a content."""
    name = names(NEW).of(CONTENT)
    assert len(name) == len(GUESS)
    assert name not in (GUESS, names(OLD).of(CONTENT))
    assert name == names(NEW, OLD).of(CONTENT)
    assert NEW.reveal() not in name


@pytest.mark.parametrize("made", [names(), names(NEW, seal="sign"), names(NEW, seal="off"), names(KMS, NEW)])
def test_plain_hashes(made):
    """Where what is stored can be read anyway, or no key is at hand, the name is the SHA-256."""
    assert made.of(CONTENT) == GUESS


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (names(), names(NEW, seal="off")),
        (names(NEW, seal="off"), names(NEW)),
        (names(OLD), names(OLD, NEW)),
        (names(OLD, NEW), names(NEW, OLD)),
        (names(NEW, OLD), names(OLD, NEW)),
        (names(KMS, OLD), names(OLD, KMS)),
        (names(OLD, KMS), names(KMS, OLD)),
    ],
)
def test_each_step_of_a_change(writer, reader):
    """While a fleet begins to encrypt, or rotates its key, each process knows the names that the other made."""
    for one, other in ((writer, reader), (reader, writer)):
        assert other.fits(one.of(CONTENT), CONTENT)
        assert not other.fits(one.of(CONTENT), CONTENT + b" ")


def test_stored_and_fetched():
    """The same arguments are one object still, and a reader without the key is told what it lacks."""
    store, pool = MemoryStore(), Pool(1)
    ours = Messages(store, pool, Settings(bucket="bucket", seal_keys=(NEW,)))
    pointer = ours.put(CONTENT, "application/json", removable=False)
    assert ours.put(CONTENT, "application/json", removable=False) == pointer
    assert [entry.key for entry in store.list("")] == ["celery-messages/" + names(NEW).of(CONTENT)]
    assert ours.get(pointer["object"], pointer["at"]) == CONTENT
    with pytest.raises(MessageNotRead, match="seal_keys"):
        Messages(store, pool, Settings(bucket="bucket")).get(pointer["object"], pointer["at"])
    pool.close()
