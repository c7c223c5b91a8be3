"""The tree of errors: drawn as it is, and fit to travel between processes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from celery.exceptions import BackendGetMetaError, BackendStoreError, ImproperlyConfigured
from kombu.exceptions import DecodeError, EncodeError

from celery_s3 import errors
from celery_s3.printable import get_logger

#: A row of the tree: how far it is indented, the class, when it is raised and what to do next.
ROW = re.compile(r"    ([ │├└─]*)([A-Z]\w+)( {2,}\S.*)?")


def drawn():
    """The tree of the docstring, as the name of each class with that of its base."""
    bases, above = {}, []
    for line in errors.__doc__.splitlines():
        if row := ROW.fullmatch(line):
            depth = len(row[1]) // 4
            above[depth:] = [row[2]]
            bases[row[2]] = above[depth - 1] if depth else None
    return bases


def nearest(cls):
    """The nearest public class of the tree that it derives from."""
    return next((base.__name__ for base in cls.__mro__[1:] if base.__name__ in errors.__all__), None)


def test_the_tree_is_drawn_as_it_is():
    """Every error stands in the module's docstring, under the class that it derives from."""
    assert drawn() == {name: nearest(getattr(errors, name)) for name in errors.__all__}


def test_every_class_is_in_it():
    """There is no error of this package outside of the tree."""
    defined = {
        name for name, cls in vars(errors).items() if isinstance(cls, type) and cls.__module__ == errors.__name__
    }
    assert {name for name in defined if not name.startswith("_")} == set(errors.__all__)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ConfigurationError", ImproperlyConfigured),
        ("ResultNotStored", BackendStoreError),
        ("ResultNotRead", BackendGetMetaError),
        ("UnreadableResult", BackendGetMetaError),
        ("NotEncodable", EncodeError),
        ("NotDecodable", DecodeError),
        ("NotDecompressed", DecodeError),
        ("FileNotRead", OSError),
    ],
)
def test_what_celery_knows_them_as(name, base):
    """Who catches what Celery, kombu or Python raises gets ours as well."""
    assert issubclass(getattr(errors, name), base)


@pytest.mark.parametrize("name", errors.__all__)
def test_pickled(name):
    """An error that a task raises arrives as it was, in a child's parent and in a result."""
    cls = getattr(errors, name)
    error = cls("what went wrong", "first", "second") if issubclass(cls, errors.ResultNotStored) else cls("it")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, str(copy), vars(copy)) == (cls, error.args, str(error), vars(error))


EVIL = "id\n2026-01-01 CRITICAL all is lost\x1b[2J\u202e\ud800"


@pytest.mark.parametrize(
    "error",
    [
        errors.ObjectMissing(EVIL, "get", EVIL, EVIL),
        errors.KeyRefused(EVIL, "Decrypt", "", EVIL),
        errors.UnreadableResult(EVIL, EVIL),
        errors.ResultNotStored(EVIL, EVIL, EVIL),
        errors.NotDecodable(EVIL),
        errors.FileNotRead(EVIL),
        errors.NotRepaired(EVIL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_error_shows_a_control_character(error):
    """A name from outside forges no line of a log, and moves no cursor."""
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_logger_escapes(caplog):
    """All of this package's are made at one place; what they are given as text is shown without control characters."""
    source = Path(errors.__file__).parent
    made = [str(file) for file in source.rglob("*.py") if "= logging.getLogger(" in file.read_text()]
    assert made == [str(source / "printable.py")]
    logger = get_logger("celery_s3.test_errors")
    logger.warning("%s of %r: %s", EVIL, EVIL, errors.ObjectMissing(EVIL))
    logger.warning("%(key)s", {"key": EVIL})
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert len(caplog.records) == 2


def test_a_place_without_a_bucket():
    """Where no bucket is known, the key alone is named, never `s3:///`."""
    assert str(errors.Conflict("lost", "put", key="a/b")).startswith("put a/b: ")
    assert str(errors.Conflict("lost", "put", "bucket", "a/b")).startswith("put s3://bucket/a/b: ")
