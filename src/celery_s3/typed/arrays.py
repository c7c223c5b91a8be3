"""numpy's arrays as npy files, its scalars as their bytes; never a pickle."""

from __future__ import annotations

from io import BytesIO
from math import prod
from typing import Any

import numpy as np
from numpy.lib import format as npy

from .standard import expect

__all__ = ["TYPES"]

#: Numbers, truth values and times.
_KINDS = "biufcmM"
#: These are texts and bytes of Python's as well; an array would cut off their zeros at the end.
_TEXTS: dict[str, tuple[type, type]] = {"S": (bytes, np.bytes_), "U": (str, np.str_)}
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def _encode_array(array: np.ndarray[Any, Any]) -> bytes:
    _check(array.dtype)
    stream = BytesIO()
    npy.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _decode_array(value: object) -> np.ndarray[Any, Any]:
    data = expect(bytes, value)
    stream = BytesIO(data)
    shape, _, dtype = _HEADERS[npy.read_magic(stream)](stream)
    _check(dtype)
    # Checked here, since numpy allocates whatever size the header says before it reads.
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"{len(data) - stream.tell()} bytes are no array of shape {shape} and type {dtype}")
    stream.seek(0)
    array: np.ndarray[Any, Any] = npy.read_array(stream, allow_pickle=False)
    return array


def _encode_scalar(scalar: np.generic) -> list[Any]:
    for kind, (plain, _) in _TEXTS.items():
        if isinstance(scalar, plain):
            return [kind, plain(scalar)]
    if scalar.dtype.kind not in _KINDS:
        raise ValueError(f"a scalar of type {scalar.dtype} has no short form: store an array, or its .item()")
    return [scalar.dtype.str, scalar.tobytes()]


def _decode_scalar(value: object) -> Any:
    name, data = expect(list, value)
    if name in _TEXTS:
        plain, cls = _TEXTS[name]
        return cls(expect(plain, data))
    dtype = np.dtype(expect(str, name))
    if dtype.kind not in _KINDS or dtype.shape or dtype.itemsize != len(expect(bytes, data)):
        raise ValueError(f"{len(data)} bytes are no scalar of type {dtype}")
    return np.ndarray((), dtype, data)[()]


def _check(dtype: np.dtype[Any]) -> None:
    """Refuse what an npy file holds as a pickle or not at all: Python objects, types of other packages."""
    for part in _parts(dtype):
        if part.kind not in f"{_KINDS}SU" and part.type is not np.void:
            raise ValueError(
                f"an array of type {dtype} holds Python objects or a type that is not numpy's, and would need pickle:"
                " convert it, as array.astype(float), or return array.tolist()"
            )


def _parts(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    if dtype.subdtype is not None:
        return _parts(dtype.subdtype[0])
    if dtype.fields is not None:
        return [part for field in dtype.fields.values() for part in _parts(field[0])]
    return [dtype]


_SCALARS = tuple({cls for cls in np.sctypeDict.values() if cls is not np.object_})

#: Name, classes, encoder, decoder.
TYPES = (
    ("numpy.array", (np.ndarray,), _encode_array, _decode_array),
    ("numpy.scalar", _SCALARS, _encode_scalar, _decode_scalar),
)
