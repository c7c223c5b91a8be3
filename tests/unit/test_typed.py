"""``typed+json``: what is written is read as it was, and only what is registered is ever built."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import KW_ONLY, InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from celery.canvas import Signature, signature
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError
from kombu.serialization import dumps as kombu_dumps
from kombu.serialization import loads as kombu_loads

from celery_s3 import typed
from celery_s3.errors import NotDecodable, NotEncodable
from celery_s3.typed import registry

TYPE = "application/x-typed+json"
BERLIN = ZoneInfo("Europe/Berlin")


class Color(Enum):
    RED = "#f00"
    BLUE = "#00f"


class Level(IntEnum):
    LOW = 1


class Mode(StrEnum):
    FAST = "fast"


class Rights(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: float
    y: float = 0.0


@dataclass
class Line:
    start: Point
    end: Point | None = None
    tags: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Order:
    id: UUID
    total: Decimal
    _: KW_ONLY
    lines: tuple[Line, ...] = ()
    count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.lines))


@dataclass
class Hint:
    text: str
    upper: InitVar[bool] = False

    def __post_init__(self, upper: bool) -> None:
        if upper:
            self.text = self.text.upper()


class Money:
    def __init__(self, amount: Decimal, unit: str) -> None:
        self.amount, self.unit = amount, unit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    __hash__ = None


for cls in (Color, Level, Mode, Rights, Point, Line, Order, Hint):
    typed.register(cls, name=f"test.{cls.__name__.lower()}")
typed.register(Money, name="test.money", encode=lambda m: (m.amount, m.unit), decode=lambda stored: Money(*stored))


def back(value: Any) -> Any:
    return typed.loads(typed.dumps(value))


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all the way down, NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True) if len(one) == len(other) else [(0, None)]
        return all(same(left, right) for left, right in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and getattr(one, "fold", 0) == getattr(other, "fold", 0)


EXACT = [
    None,
    True,
    -0.0,
    2**63,
    -(2**64),
    10**5000,
    float("inf"),
    float("-inf"),
    float("nan"),
    "é\0\ud800",
    b"",
    b"\x00\xff",
    (),
    (1, (2, [3])),
    {1: "int", None: "none", 1.5: "float", (1, "a"): "tuple", b"k": "bytes", Color.RED: "enum", "s": "text"},
    {True: 1},
    {"$type": "py.tuple", "value": [1]},
    {"$type": "nothing like it"},
    {"$type": {"$type": {}}},
    {"__type__": "datetime", "__value__": "no date"},
    {1, "a", (2,), frozenset({3})},
    frozenset(),
    Decimal("1.500"),
    Decimal("-Infinity"),
    UUID(int=5),
    date(1, 1, 1),
    datetime.max,
    datetime(2024, 10, 27, 2, fold=1),
    time(2, fold=1),
    datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-3, minutes=-30, seconds=-15))),
    time(23, 59, 59, 999999),
    time(1, tzinfo=UTC),
    time(1, tzinfo=BERLIN),
    timedelta.min,
    timedelta(days=-1, microseconds=1),
    UTC,
    BERLIN,
    Color.BLUE,
    Level.LOW,
    Mode.FAST,
    Rights.READ | Rights.WRITE,
    Rights(0),
    Point(1.0, 2.0),
    Line(Point(1.0), tags={"a"}),
    Order(UUID(int=1), Decimal("9.99"), lines=(Line(Point(0.0)), Line(Point(1.0), Point(2.0)))),
    Hint("said", upper=True),
    Money(Decimal(3), "EUR"),
]


@pytest.mark.parametrize("value", EXACT, ids=lambda value: type(value).__name__)
def test_round_trip(value):
    """Each value comes back equal and of its type, alone and inside of others."""
    assert same(back(value), value)
    assert same(back([{"deep": (value,)}]), [{"deep": (value,)}])


def test_standard_json():
    """What is written is ASCII and JSON that any parser takes, numbers beyond 64 bits and NaN included."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for value in EXACT:
        text = typed.dumps(value)
        assert text.isascii()
        json.loads(text, parse_constant=refuse)


def test_zone_and_fold():
    """A zone stays a zone, and of an hour that comes twice the one that was meant."""
    for fold in (0, 1):
        moment = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)
        found = back(moment)
        assert (found, found.fold, found.tzinfo) == (moment, fold, BERLIN)
        assert found.utcoffset() == moment.utcoffset()


def test_foreign_zone_keeps_its_offset():
    """A zone of another library is kept as its offset; a time of day in one has none, and is refused."""
    from dateutil import tz

    zone = tz.gettz("America/New_York")
    found = back(datetime(2024, 7, 1, tzinfo=zone))
    assert found == datetime(2024, 7, 1, tzinfo=zone)
    assert found.tzinfo == timezone(timedelta(hours=-4))
    with pytest.raises(NotEncodable, match="without a date"):
        typed.dumps(time(1, tzinfo=zone))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TEXTS = st.sampled_from(["$type", "value", "$value", "py.dict", "py.tuple", "test.order", "__type__"]) | st.text(
    max_size=9
)
JSON_LIKE = st.recursive(PLAIN | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=30)
SCALARS = (
    PLAIN
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.datetimes()
    | st.datetimes(timezones=st.timezones())
    | st.times()
    | st.timedeltas()
    | st.sampled_from([*Color, *Level, *Mode, *Rights])
    | st.builds(Point, st.floats(), st.floats())
)
KEYS = (st.integers() | TEXTS | st.binary() | st.tuples(st.integers(), TEXTS) | st.sampled_from(Color)).map(
    lambda key: key
)
ANY = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.frozensets(KEYS, max_size=5)
    ),
    max_leaves=20,
)


@given(JSON_LIKE)
def test_anything_like_json(value):
    """Any value made of what JSON has comes back exactly, also one that looks like our own marks."""
    assert same(back(value), value)


@given(ANY)
def test_anything(value):
    """So does any mixture of the standard types."""
    assert same(back(value), value)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_plain_json_stays(value):
    """What plain JSON has is written as plain JSON, so that other programs can read it."""
    with suppress(ValueError):
        text = json.dumps(value, allow_nan=False)
        if "$type" not in text and all(abs(int(number)) < 2**63 for number in _integers(value)):
            assert json.loads(typed.dumps(value)) == value


def _integers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in _integers(one)]
    return [value] if isinstance(value, int) else []


# -- what is refused when it is written


class Unknown:
    pass


class SubOrder(Order):
    pass


@dataclass
class Stranger:
    x: int


class Plain(Enum):
    ONE = 1


class Pair(NamedTuple):
    a: int


class Whole(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(object(), Unknown(), Stranger(1), SubOrder(uuid4(), Decimal(1)), Plain.ONE, Pair(1), Whole(1), KeyError("x")),
        *(lambda: 1, type, 1j, bytearray(b"x"), memoryview(b"x"), range(3), iter([]), (one for one in [])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unknown_type(value):
    """A type that is not registered is named, with the way to register it; a subclass of a registered one as well."""
    name = type(value).__name__
    with pytest.raises(NotEncodable, match=rf"{name}.*is not registered.*celery_s3\.typed\.register\({name}, name="):
        typed.dumps({"a": [value]})
    with pytest.raises(NotEncodable, match=name):
        typed.dumps({value: 1} if type(value).__hash__ else value)


def test_subclasses_that_are_plain():
    """Subclasses of dict, list and str are stored as such: Celery's signatures are."""

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    assert same(back(OrderedDict(b=1, a=2)), {"b": 1, "a": 2})
    assert same(back(Text("text")), "text")
    sent = signature("add", (1, Decimal(2)), {"x": {1}}, link=signature("next"))
    found = back(sent)
    assert type(found) is dict
    assert Signature.from_dict(found) == sent
    assert found["args"] == (1, Decimal(2))


def test_encoder_that_fails():
    """What a registered encoder raises is told with the type."""

    @typed.register(name="test.broken", encode=lambda value: value.nothing, decode=Unknown)
    class Broken:
        pass

    with pytest.raises(NotEncodable, match=r"Broken.*AttributeError.*nothing"):
        typed.dumps(Broken())


def test_nesting_has_a_limit():
    """What is written can be read; what is nested too deeply, or contains itself, is refused by who writes."""

    def nested(levels: int, wrap: Any) -> Any:
        value = 1
        for _ in range(levels):
            value = wrap(value)
        return value

    for wrap, levels in ((lambda v: [v], 1), (lambda v: {"a": v}, 1), (lambda v: (v,), 2), (lambda v: {1: v}, 3)):
        deepest = nested(typed.MAX_DEPTH // levels, wrap)
        assert back(deepest) == deepest
        with pytest.raises(NotEncodable, match=r"nested more than 200 levels"):
            typed.dumps(wrap(deepest))
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotEncodable, match="contains itself"):
        typed.dumps(loop)


# -- what is refused when it is read


@pytest.mark.parametrize(
    "payload",
    [
        *("", "{", "nope", '{"a": 1} x', b"\xff", b"\xff\xfe1\x00", "[" * 100_000, '{"a":' * 100_000, "1" * 5000),
        *('{"$type": "py.tuple"}', '{"$type": "py.tuple", "value": [], "more": 1}', '{"$type": 1, "value": 1}'),
        *('{"$type": ["py.tuple"], "value": 1}', '{"$type": {"$type":"py.tuple","value":[]}, "value": 1}'),
    ],
    ids=lambda payload: repr(payload[:30]),
)
def test_no_typed_json(payload):
    """Garbage is one error of ours, which is kombu's DecodeError too."""
    with pytest.raises(NotDecodable) as caught:
        typed.loads(payload)
    assert isinstance(caught.value, DecodeError)
    assert len(str(caught.value)) < 500


WRONG = [
    ("py.tuple", "text"),
    ("py.set", [[]]),
    ("py.set", [{}]),
    ("py.bytes", "no base64!"),
    ("py.bytes", "é"),
    ("py.bytes", 5),
    ("py.datetime", "yesterday"),
    ("py.datetime", ["2024-01-01T00:00:00", "Europe/Berlin", 0]),
    ("py.datetime", ["2024-01-01T00:00:00", {"$type": "py.zoneinfo", "value": "UTC"}, 7]),
    ("py.datetime", []),
    ("py.date", 1),
    ("py.timedelta", [10**30, 0, 0]),
    ("py.timedelta", [0.5, 0, 0]),
    ("py.timezone", 5),
    ("py.zoneinfo", "../../../etc/passwd"),
    ("py.zoneinfo", "/etc/passwd"),
    ("py.zoneinfo", "os.path"),
    ("py.zoneinfo", "Europe/Nowhere"),
    ("py.decimal", "one"),
    ("py.decimal", [0, [1], 2]),
    ("py.uuid", "5"),
    ("py.int", "xyz"),
    ("py.int", 5),
    ("py.float", None),
    ("py.dict", [[1, 2, 3]]),
    ("py.dict", [[[], 1]]),
    ("py.dict", {"a": 1}),
    ("test.color", "GREEN"),
    ("test.color", "__class__"),
    ("test.color", []),
    ("test.rights", 64),
    ("test.order", {}),
    ("test.order", []),
    ("test.order", {"id": 1, "total": 1, "__class__": 1}),
    ("test.order", {"id": 1, "total": 1, "count": 7}),
    ("test.order", {"$type": "py.dict", "value": [[1, 2]]}),
    ("test.point", {"x": 1, "z": 2}),
    ("test.money", 1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_value_that_makes_no_sense(name, value):
    """A known name with a value it cannot be made of is an error that tells the name."""
    with pytest.raises(NotDecodable, match=rf"cannot be read as '{name}'"):
        typed.loads(json.dumps({"$type": name, "value": value}))


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "test.unknown", "py.object", "", "numpy.ndarray"])
def test_unknown_name(name):
    """A name that is not registered here is an error that tells what to import; nothing is looked up by it."""
    with pytest.raises(NotDecodable, match=r"no type is registered as .*celery_s3\.typed\.register"):
        typed.loads(json.dumps({"$type": name, "value": "true"}))


def test_nothing_is_imported_for_a_name():
    """No module is imported because a payload names it, but for the known families of optional packages."""
    before = set(sys.modules)
    for name in ("wave.Wave_read", "this", "celery_s3.typed.arrays", "..arrays"):
        with pytest.raises(NotDecodable):
            typed.loads(json.dumps({"$type": name, "value": 1}))
    assert not {"wave", "this"} & (set(sys.modules) - before)


def test_constructor_speaks_last():
    """What a class' own constructor refuses is refused, and fields that it computes cannot be set."""

    @typed.register(name="test.even")
    @dataclass(frozen=True)
    class Even:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("odd")

    assert back(Even(2)) == Even(2)
    with pytest.raises(NotDecodable, match="odd"):
        typed.loads('{"$type": "test.even", "value": {"number": 3}}')


def test_new_fields_have_their_defaults():
    """What was stored before a class got a field with a default can be read."""
    text = typed.dumps(Line(Point(1.0))).replace(',"end":null', "")
    assert typed.loads(text) == Line(Point(1.0))


# -- registering


def test_decorator_gives_the_class():
    """As a decorator and as a call it returns the class."""

    @typed.register(name="test.decorated")
    @dataclass
    class Decorated:
        x: int

    assert back(Decorated(1)) == Decorated(1)
    assert typed.register(Decorated, name="test.decorated") is Decorated


def test_names_are_taken_once():
    """A name has one class and a class one name; the standard types' names are theirs."""
    with pytest.raises(ValueError, match=r"'test.order' is the name of .*Order.* already"):
        typed.register(Stranger, name="test.order")
    with pytest.raises(ValueError, match=r"registered as 'test.order' already"):
        typed.register(Order, name="test.order2")
    with pytest.raises(ValueError, match=r"registered as 'py.datetime' already"):
        typed.register(datetime, name="mine", encode=str, decode=datetime.fromisoformat)
    for name in ("", "py", "py.mine", "numpy.mine", "pandas.x", "pyarrow.x"):
        with pytest.raises(ValueError, match="cannot be the name of Stranger"):
            typed.register(Stranger, name=name)
    assert registry.type_of(Stranger) is None


def test_module_that_is_loaded_again():
    """A class takes the place of the one it was before its module was loaded again."""

    def load() -> type:
        @typed.register(name="test.reloaded")
        @dataclass
        class Reloaded:
            x: int

        return Reloaded

    first, second = load(), load()
    assert type(back(first(1))) is second
    assert back(second(1)) == second(1)


@dataclass
class NeedsInit:
    x: int
    factor: InitVar[int]

    def __post_init__(self, factor: int) -> None:
        self.x *= factor


@dataclass(init=False)
class OwnInit:
    x: int

    def __init__(self, y: int) -> None:
        self.x = y


@dataclass(init=False)
class NoField:
    x: int

    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize(("cls", "odd"), [(NeedsInit, "factor"), (OwnInit, "y, x"), (NoField, "x"), (Unknown, "")])
def test_class_that_cannot_be_rebuilt(cls, odd):
    """A class that its fields do not make again is refused when it is registered, with the remedy."""
    with pytest.raises(TypeError, match=rf"{cls.__name__}.*{odd}.*encode"):
        typed.register(cls, name="test.bad")
    with pytest.raises(TypeError, match="both"):
        typed.register(cls, name="test.bad", encode=repr)
    with pytest.raises(TypeError, match="takes a class"):
        typed.register(cls.__name__, name="test.bad")


# -- as a serializer of kombu's


def test_kombu_knows_it():
    """Installing the package is enough for kombu; its errors come out as kombu's."""
    body = ((1, Decimal(2)), {"x": {3}}, {"callbacks": None})
    content_type, encoding, payload = kombu_dumps(body, serializer="typed+json")
    assert (content_type, encoding) == (TYPE, "utf-8")
    for one in (payload, payload.encode(), memoryview(payload.encode())):
        assert same(kombu_loads(one, TYPE, "utf-8", accept={TYPE}), body)
    with pytest.raises(EncodeError, match="is not registered"):
        kombu_dumps(object(), serializer="typed+json")
    with pytest.raises(DecodeError, match="no type is registered"):
        kombu_loads('{"$type": "nobody.knows", "value": 1}', TYPE, "utf-8")


def test_it_must_be_accepted():
    """Nobody reads it who does not accept it."""
    with pytest.raises(ContentDisallowed):
        kombu_loads("1", TYPE, "utf-8", accept={"application/json"})


def test_nothing_is_imported_before_it_is_used():
    """A process that imports kombu and the backend pays for the entry point's own few lines."""
    code = (
        "import sys, kombu.serialization, celery_s3.backends.s3;"
        "assert 'celery_s3.serializers' in sys.modules;"
        "print([m for m in sys.modules if m.startswith('celery_s3.typed') or m in ('numpy', 'pyarrow', 'pydantic')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_optional_packages_are_not_imported():
    """Values that are not theirs import none of the optional packages."""
    code = (
        "import sys; from celery_s3 import typed; typed.loads(typed.dumps([(1, {2}), b'x']));"
        "print([m for m in ('numpy', 'pyarrow', 'pandas', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_large_values():
    """Megabytes come back."""
    value = {"bytes": bytes(range(256)) * 20_000, "text": "é" * 1_000_000, "numbers": list(range(100_000))}
    assert back(value) == value


#: Numbers of one hash: Python's is the remainder by this prime.
COLLIDING = [number * (2**61 - 1) for number in range(1, 5_000)]


@pytest.mark.parametrize("kind", ["py.set", "py.frozenset", "py.dict"])
def test_members_that_were_chosen_to_share_a_hash(kind):
    """A set or dict of them would take the square of its size in time: it is an error at once, however they hide."""
    for members in (
        COLLIDING,
        [{"$type": "py.tuple", "value": [number]} for number in COLLIDING],
        [{"$type": "py.uuid", "value": str(UUID(int=number))} for number in COLLIDING],
        [{"$type": "py.decimal", "value": str(number)} for number in COLLIDING],
    ):
        value = [[member, 0] for member in members] if kind == "py.dict" else members
        payload = json.dumps({"$type": kind, "value": value})
        with pytest.raises(NotDecodable, match="have the same hash"):
            typed.loads(payload)


def test_honest_sets_are_not_refused():
    """Numbers as they come, multiples of powers of two and equal floats too, are read."""
    for members in (
        set(range(-5_000, 5_000)),
        {number << 40 for number in range(5_000)},
        {0.5 * n for n in range(999)},
    ):
        assert typed.loads(typed.dumps(members)) == members
        assert typed.loads(typed.dumps(dict.fromkeys(members))) == dict.fromkeys(members)
