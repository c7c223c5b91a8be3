"""Values of packages that need not be installed: pydantic's models, numpy's arrays, Arrow's tables, pandas' frames."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3 import typed
from celery_s3.errors import NotDecodable, NotEncodable
from celery_s3.typed import registry

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")
pydantic = pytest.importorskip("pydantic")

T = TypeVar("T")


def back(value: Any) -> Any:
    return typed.loads(typed.dumps(value))


def read(name: str, value: Any) -> Any:
    """What a payload of that name stands for; ``value`` as typed+json has it."""
    return typed.loads(json.dumps({"$type": name, "value": json.loads(typed.dumps(value))}))


# -- pydantic


class Item(pydantic.BaseModel):
    name: str
    price: Decimal


class Discounted(Item):
    percent: int = 0


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow")
    number: int = pydantic.Field(alias="orderNumber", ge=0)
    placed: datetime
    items: tuple[Item, ...] = ()
    tags: frozenset[str] = frozenset()
    anything: Any = None
    secret: str = pydantic.Field(default="", exclude=True)


class Strict(pydantic.BaseModel, strict=True):
    when: datetime
    data: bytes


class Names(pydantic.RootModel[list[str]]):
    pass


class Box(pydantic.BaseModel, Generic[T]):
    inner: T


for cls in (Item, Discounted, Order, Strict, Names, Box[int]):
    typed.register(cls, name=f"test.pydantic.{cls.__name__.lower()}")


@pydantic.dataclasses.dataclass
class Checked:
    number: int


typed.register(Checked, name="test.pydantic.checked")


def test_models():
    """Models come back equal, nested ones as the class that they are, aliases and extra fields included."""
    order = Order(
        orderNumber=7,
        placed=datetime(2024, 1, 1, tzinfo=UTC),
        items=(Item(name="a", price="1.10"), Discounted(name="b", price=2, percent=50)),
        tags=frozenset("x"),
        anything={1: (Decimal("0.1"), b"\xff")},
        more=[1, (2,)],
    )
    found = back(order)
    assert found == order
    assert type(found.items[1]) is Discounted
    assert found.more == [1, (2,)]
    for model in (Strict(when=datetime(2024, 1, 1), data=b"\xff"), Names(["a", "b"]), Box[int](inner=1), Checked(1)):
        assert back(model) == model


def test_excluded_fields_stay_out():
    """A field that a model excludes is not stored."""
    order = Order(orderNumber=1, placed=datetime(2024, 1, 1), secret="hush")
    assert "hush" not in typed.dumps(order)
    assert back(order).secret == ""


def test_models_are_validated():
    """What a payload says of a model goes through its validators; nothing is set past them."""
    for name, value in (
        ("item", {"name": "a"}),
        ("item", {"name": [], "price": Decimal(1)}),
        ("order", {"number": -1, "placed": datetime(2024, 1, 1)}),
        ("strict", {"when": "2024-01-01", "data": b""}),
        ("strict", []),
        ("names", {"root": ["a"]}),
        ("checked", {"number": "many"}),
    ):
        with pytest.raises(NotDecodable, match=rf"cannot be read as 'test\.pydantic\.{name}'"):
            read(f"test.pydantic.{name}", value)


def test_models_that_cannot_be_stored():
    """An unregistered model is an error, nested ones too, as is one whose needed field is excluded."""

    class Other(pydantic.BaseModel):
        pass

    class Lost(pydantic.BaseModel):
        x: int = pydantic.Field(exclude=True)

    with pytest.raises(NotEncodable, match=r"Other.*register\(Other"):
        typed.dumps(Order(orderNumber=1, placed=datetime(2024, 1, 1), anything=Other()))
    with pytest.raises(NotEncodable, match="SecretStr"):
        typed.dumps(Order(orderNumber=1, placed=datetime(2024, 1, 1), anything=pydantic.SecretStr("hush")))
    with pytest.raises(TypeError, match="x must be there"):
        typed.register(Lost, name="test.pydantic.lost")


# -- numpy

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.ones((2, 3), dtype=">i2")),
    np.arange(10)[::-3],
    np.array(5),
    np.zeros((0, 3)),
    np.array([], dtype="U5"),
    np.array(["é", ""]),
    np.array([b"a\0b"]),
    np.array([True, False]),
    np.array([1 + 2j], dtype="c8"),
    np.array(["2024-01-01", "NaT"], dtype="M8[ns]"),
    np.array([1, 2], dtype="m8[s]"),
    np.array([(1, "a", [0.5, 1.5])], dtype=[("x", "<i4"), ("y", "U3"), ("z", "<f8", (2,))]),
    np.frombuffer(b"abcdef", dtype="V3"),
    np.array([np.nan, np.inf]),
    np.array([1.5], dtype="f2"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays(array):
    """Arrays come back with their type, byte order, shape and values; they can be written to."""
    found = back(array)
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable
    if array.flags.forc:
        assert found.flags.f_contiguous == array.flags.f_contiguous


SCALARS = [np.float64(0.1), np.float32("nan"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.complex128(1j)]
SCALARS += [np.str_("é"), np.str_(""), np.bytes_(b"\xff"), np.bytes_(b""), np.datetime64("2024-01-01T00:00", "m")]
SCALARS += [np.datetime64("NaT", "s"), np.timedelta64(5, "D"), np.float16(1.5), np.longdouble(1) / 3]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: type(scalar).__name__)
def test_scalars(scalar):
    """Scalars stay numpy's, of their type and value, as keys of a dict as well."""
    found = back(scalar)
    assert (type(found), found.dtype) == (type(scalar), scalar.dtype)
    assert found == scalar or (found != found and scalar != scalar)
    assert [type(key) for key in back({scalar: 1})] == [type(scalar)]


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1, "a"], dtype=object),
        np.array([(1, None)], dtype=[("x", "i4"), ("y", "O")]),
        np.array(["a"], dtype=np.dtypes.StringDType()),
        np.ma.array([1, 2], mask=[0, 1]),
        np.array([(1,)], dtype=[("x", "i4")])[0],
        np.array([(1,)], dtype=[("x", "i4")]).view(np.recarray),
        np.float64,
        np.dtype("i4"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_that_would_need_pickle(value):
    """Arrays of objects are refused with a remedy, as is what is nearly an array: a mask would be lost."""
    with pytest.raises(NotEncodable, match=r"convert it|its \.item\(\)|is not registered"):
        typed.dumps(value)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x80\x04\x95pickle",
        b"PK\x03\x04 a zip",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(9)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 10000000000000000000000000)}"),
        npy("{'descr': 'os.system', 'fortran_order': False, 'shape': (1,)}"),
        npy("__import__('os')"),
        npy("(" * 5000),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8)).replace(b"\x01\x00", b"\x03\x00", 1),
    ],
    ids=range(13),
)
def test_forged_arrays(data):
    """Bytes that are no array, or claim to be a far larger one, are an error before anything is allocated."""
    with pytest.raises(NotDecodable, match=r"cannot be read as 'numpy\.array'"):
        read("numpy.array", data)


@pytest.mark.parametrize(
    "value",
    [
        *(
            ["O", b"12345678"],
            ["f8", b""],
            ["i4,i4", bytes(8)],
            ["V3", b"abc"],
            ["(2,)f8", bytes(16)],
            ["nothing", b""],
        ),
        *(["S", "text"], ["U", b"bytes"], [1, b""], [], "f8", [[], b""], [{}, b""], ["U1000000000", b""]),
    ],
    ids=str,
)
def test_forged_scalars(value):
    """So are scalars."""
    with pytest.raises(NotDecodable, match=r"cannot be read as 'numpy\.scalar'"):
        read("numpy.scalar", value)


# -- Arrow and pandas

TABLE = pa.table(
    {"x": [1, None], "y": [["a"], []], "z": pa.array(["a", "a"]).dictionary_encode()}
).replace_schema_metadata({"by": "test"})


def test_tables():
    """Tables come back with schema, metadata and nulls, empty ones too, and slices only with what they show."""
    found = back({"table": TABLE})["table"]
    assert found.equals(TABLE, check_metadata=True)
    assert back(TABLE.slice(1)).equals(TABLE.slice(1))
    assert back(pa.table({})).equals(pa.table({}))
    large = pa.table({"x": range(100_000)})
    assert len(typed.dumps(large.slice(0, 10))) < 2_000


FRAMES = [
    pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": pd.to_datetime(["2024-01-01", None], utc=True)}),
    pd.DataFrame({"a": [1.5]}, index=pd.Index(["row"], name="rows")),
    pd.DataFrame({1: [1], 2: [2]}),
    pd.DataFrame({"a": pd.Categorical(["x", "y", "x"]), "b": pd.array([1, None, 3], dtype="Int64")}),
    pd.DataFrame([[1, 2]], index=pd.MultiIndex.from_tuples([("a", 1)], names=["x", "y"]), columns=["p", "q"]),
    pd.DataFrame(),
    pd.DataFrame({"a": pd.to_timedelta([1, 2], unit="s")}, index=pd.date_range("2024-01-01", periods=2)),
]


@pytest.mark.parametrize("frame", FRAMES, ids=range(len(FRAMES)))
def test_frames(frame):
    """Frames come back with index, names and types of the columns."""
    pd.testing.assert_frame_equal(back(frame), frame, check_freq=False)


@pytest.mark.parametrize(
    "value",
    [
        pd.DataFrame({"a": [1, "x", object()]}, dtype=object),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.Series([1]),
        pd.Timestamp("2024-01-01"),
        pa.array([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_frames_that_cannot_be_stored(value):
    """A frame that Arrow cannot hold is refused, as is what is no frame."""
    with pytest.raises(NotEncodable, match=type(value).__name__):
        typed.dumps(value)


def test_timestamp_can_be_registered():
    """What comes from a known package and is not known itself can be registered like any class."""
    typed.register(pd.Timestamp, name="test.timestamp", encode=lambda t: t.isoformat(), decode=pd.Timestamp)
    moment = pd.Timestamp("2024-01-01T00:00:00.123456789")
    assert back(moment) == moment


@pytest.mark.parametrize("name", ["pyarrow.table", "pandas.frame"])
@pytest.mark.parametrize("data", [b"", b"ARROW1", b"\xff" * 40, "text", b"PAR1"], ids=repr)
def test_forged_tables(name, data):
    """Bytes that are no table are an error."""
    with pytest.raises(NotDecodable, match=rf"cannot be read as '{name}'"):
        read(name, data)


def packed(table, compression):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("name", ["pyarrow.table", "pandas.frame"])
@pytest.mark.parametrize("bomb", ["column", "dictionary"])
def test_compressed_tables_are_refused(name, compression, bomb):
    """8 kB that Arrow would decompress to 190 MB are an error, and take no memory."""
    column = pa.array([0] * 1_000_000, pa.int64())
    if bomb == "dictionary":
        column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), column)
    data = packed(pa.table({"a": column}), compression)
    before = pa.total_allocated_bytes()
    with pytest.raises(NotDecodable, match="its buffers are compressed"):
        read(name, data)
    assert pa.total_allocated_bytes() <= before
    assert read("pyarrow.table", packed(TABLE, None)).equals(TABLE)


def test_frames_of_columns_without_buffers():
    """Arrow stores 2·10^9 nulls in a word, and pandas would not: such a frame is refused, the table itself is none."""
    data = packed(pa.table({"a": pa.nulls(2 * 10**9)}), None)
    assert len(data) < 1000
    with pytest.raises(NotDecodable, match="would take more than 134,217,728 bytes"):
        read("pandas.frame", data)
    assert read("pyarrow.table", data).num_rows == 2 * 10**9


STREAM = b64decode(json.loads(typed.dumps(TABLE))["value"]["value"])


@given(st.lists(st.tuples(st.integers(0, len(STREAM) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_tables(changes):
    """A stream with bytes changed is an error or a table that can be looked at, never a crash."""
    data = bytearray(STREAM)
    for place, byte in changes:
        data[place] = byte
    with suppress(NotDecodable):
        read("pyarrow.table", bytes(data)).to_pylist()


def test_old_pyarrow_is_refused(monkeypatch):
    """A pyarrow that runs pickles hidden in a table is not used for reading."""
    monkeypatch.setattr(pa, "__version__", "14.0.0")
    with pytest.raises(NotDecodable, match="install 15 or later"):
        read("pyarrow.table", b"")


def test_package_that_is_missing():
    """A value that needs a package which is not installed is an error that names it."""
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['pyarrow'] = None; from celery_s3 import typed\n"
        "for name in ('numpy.array', 'pandas.frame'):\n"
        '    try: typed.loads(\'{"$type": "%s", "value": 1}\' % name)\n'
        "    except typed.wire.NotDecodable as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, package in zip(done.stdout.splitlines(), ["numpy", "pandas"], strict=True):
        assert f"needs {package}, which cannot be imported" in line


# -- what a payload may import


def test_a_name_that_is_none_of_ours_imports_nothing():
    """Not even a package that we know types of."""
    code = """
import sys
from celery_s3 import typed
from celery_s3.errors import NotDecodable
before = set(sys.modules)
for name in ("pandas.x", "pandas", "pandas.frame.x", "numpy.Array", "pyarrow.", "celery_s3.files", "os.system"):
    try:
        typed.loads('{"$type": "%s", "value": null}' % name)
    except NotDecodable as exc:
        assert "no type is registered" in str(exc), exc
    else:
        raise AssertionError(name)
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_our_types_are_known_without_their_packages():
    """The table has exactly those that the modules define."""
    defined = {}
    for module in set(registry._MODULES.values()):
        for name, *_ in import_module(f"celery_s3.typed.{module}").TYPES:
            defined[name] = module
    assert defined == registry._MODULES
