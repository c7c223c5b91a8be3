"""pandas' data frames as Arrow tables, with what pandas notes in them about index and types."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

from celery_s3.codec.compression import LIMIT, TIMES

from .standard import expect
from .tables import pack, unpack

__all__ = ["TYPES"]


def _encode(frame: Any) -> bytes:
    return pack(pa.Table.from_pandas(frame, nthreads=1))


def _decode(value: object) -> Any:
    table = unpack(value)
    # pandas has a place for each value, also of columns that Arrow stores in a word: 10^9 times null.
    most = max(LIMIT, TIMES * len(expect(bytes, value)))
    if 8 * table.num_rows * table.num_columns > most:
        raise ValueError(
            f"its {table.num_rows:,} rows of {table.num_columns:,} columns would take more than {most:,} bytes"
        )
    return table.to_pandas(use_threads=False)


TYPES = (("pandas.frame", (pd.DataFrame,), _encode, _decode),)
