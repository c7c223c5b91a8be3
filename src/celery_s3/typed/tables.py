"""Arrow's tables as IPC streams."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .standard import expect

__all__ = ["TYPES", "pack", "unpack"]

#: Older ones run pickles that are hidden in a table's metadata (CVE-2023-47248).
_SAFE = 15


def pack(table: Any) -> bytes:
    """A table as an IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(value: object) -> Any:
    """The table in an IPC stream.

    Raises:
        pyarrow.ArrowException: it is none.
        RuntimeError: this pyarrow is too old to read what a stranger may have written.
    """
    if int(pa.__version__.partition(".")[0]) < _SAFE:
        raise RuntimeError(f"pyarrow {pa.__version__} is not safe to read tables with: install {_SAFE} or later")
    # Without pyarrow's threads: a child that was forked has none of its parent's, and would wait for them for ever.
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.ipc.open_stream(expect(bytes, value), options=options) as reader:
        table = reader.read_all()
    # Forged offsets would let pyarrow read other memory than the stream's.
    table.validate(full=True)
    return table


TYPES = (("pyarrow.table", (pa.Table,), pack, unpack),)
