"""Arrow's tables as IPC streams."""

from __future__ import annotations

import struct
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
    data = expect(bytes, value)
    _check_size(data)
    # Without pyarrow's threads: a child that was forked has none of its parent's, and would wait for them for ever.
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.ipc.open_stream(data, options=options) as reader:
        table = reader.read_all()
    # Forged offsets would let pyarrow read other memory than the stream's.
    table.validate(full=True)
    return table


def _check_size(data: bytes) -> None:
    """Refuse what becomes larger by being read: buffers that are compressed, of which 8 kB may make gigabytes.

    Nothing of ours compresses them, for `result_compression` does. What is not compressed is not even copied.
    """
    stream = pa.BufferReader(data)
    while True:
        try:
            message = pa.ipc.read_message(stream)
        except EOFError:
            return
        if message.type in ("record batch", "dictionary") and _is_compressed(message):
            raise ValueError("its buffers are compressed, which celery-s3 leaves to `result_compression`")


def _is_compressed(message: Any) -> bool:
    """Whether a batch has a ``compression``: the 4th field of RecordBatch in Arrow's Message.fbs, a flatbuffer.

    pyarrow tells it nowhere. A table there begins with the distance back to its list of fields, which has the length
    of the list, the table's, and for each field its place in the table, 0 where it is not there.
    """
    data = message.metadata.to_pybytes()

    def number(form: str, at: int) -> int:
        found: int = struct.unpack_from(form, data, at)[0]
        return found

    def field(table: int, index: int) -> int:
        fields = table - number("<i", table)
        place = 4 + 2 * index
        offset = number("<H", fields + place) if place < number("<H", fields) else 0
        return table + offset if offset else 0

    def table_at(place: int) -> int:
        return place + number("<I", place)

    header = table_at(field(table_at(0), 2))
    if message.type == "dictionary":
        header = table_at(field(header, 1))
    return bool(field(header, 3))


TYPES = (("pyarrow.table", (pa.Table,), pack, unpack),)
