"""pandas' data frames as Arrow tables, with what pandas notes in them about index and types."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

from .tables import pack, unpack

__all__ = ["TYPES"]


def _encode(frame: Any) -> bytes:
    return pack(pa.Table.from_pandas(frame, nthreads=1))


def _decode(value: object) -> Any:
    return unpack(value).to_pandas(use_threads=False)


TYPES = (("pandas.frame", (pd.DataFrame,), _encode, _decode),)
