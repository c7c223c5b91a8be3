"""Compression of what is stored: by any method of kombu's registry, from a size on, and only where it helps.

In front of a compressed payload stands ``MAGIC + content type of the method + NUL``, exactly as in Celery 5.7: a reader
needs no setting, and Celery's own backends read it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kombu.compression import compress, encoders, get_decoder, get_encoder
from kombu.exceptions import DecodeError
from kombu.utils.encoding import str_to_bytes

from celery_s3.errors import ConfigurationError, NotDecompressed
from celery_s3.interruptions import brief, reraise_interruption

__all__ = ["COMPRESSED_PAYLOAD_MAGIC", "LIMIT", "compress_payload", "compression_method", "decompress_payload"]

COMPRESSED_PAYLOAD_MAGIC = b"\x00celery-compressed\x00"

#: What is kept of a payload's size at most; a result that is hardly smaller is not worth the readers' time.
WORTH = 0.9
#: Bytes from which a sample tells whether the whole is worth it: xz needs a second for a megabyte of noise.
SAMPLED = 1024 * 1024
#: A sample has so many pieces of so many bytes, from all over the payload.
PIECES, PIECE = 16, 4096
#: Bytes that may come out of anything compressed, however small it is (the default of `decompression_limit`), and how
#: many times its own size. A kilobyte of bzip2 could fill the memory otherwise.
LIMIT, TIMES = 128 * 1024 * 1024, 100
#: Bytes in which a method's content type ends.
LONGEST_NAME = 128

#: What people call the methods that kombu may know, the usual ones first.
_NAMES = ("gzip", "zstd", "brotli", "bzip2", "lzma")
#: What to install for the methods that kombu knows only with another package.
_PACKAGES = {
    **dict.fromkeys(("zstd", "zstandard", "application/zstd"), "'celery-s3[zstd]'"),
    **dict.fromkeys(("brotli", "application/x-brotli"), "brotli"),
}
#: Kombu's own methods, by their content types: they decompress a view of a payload, which is no copy. Others get bytes.
_TAKE_VIEWS = (
    "application/x-gzip",
    "application/x-bz2",
    "application/x-lzma",
    "application/zstd",
    "application/x-brotli",
)


def compression_method(name: str | None, setting: str = "result_compression") -> str | None:
    """The kombu compression that a setting names; ``None`` where it names none.

    Raises:
        ConfigurationError: kombu knows no such method here.
    """
    if not name:
        return None
    try:
        get_encoder(name)
    except KeyError as exc:
        package = _PACKAGES.get(name)
        remedy = f"it needs a package: pip install {package}" if package else f"use {', '.join(_known())}"
        raise ConfigurationError(f"{setting} is {name!r}, which kombu does not know here: {remedy}.") from exc
    return name


def _known() -> list[str]:
    """The methods that kombu has here; those of an application's own by their content types."""
    named = {}
    for name in _NAMES:
        with suppress(KeyError):
            named[get_encoder(name)[1]] = name
    return [*named.values(), *sorted(set(encoders()) - set(named))]


def compress_payload(payload: bytes | str, method: str, threshold: int) -> tuple[bytes, ...]:
    """A payload as it is to be stored, in one piece or two: they are not joined, which would take as much memory again.

    What no reader would decompress, since it became so much smaller, stays as it is.

    Arguments:
        method: kombu's name of it.
        threshold: bytes below which nothing is compressed.
    """
    plain: bytes = str_to_bytes(payload)
    if plain.startswith(COMPRESSED_PAYLOAD_MAGIC):
        return _packed(plain, method)  # as it is, it would be taken for a compressed one
    if len(plain) < threshold or (len(plain) >= SAMPLED and not _helps(plain, method)):
        return (plain,)
    packed = _packed(plain, method)
    size = sum(map(len, packed))
    return packed if size <= WORTH * len(plain) and len(plain) <= _most(size, LIMIT) else (plain,)


def decompress_payload(payload: bytes, limit: int = LIMIT) -> bytes:
    """The payload as it was before :func:`compress_payload`; one without the marker is returned as it is.

    Arguments:
        limit: bytes that may come out of it, where they are more than 100 times its own. Methods that an application
            has added to kombu's registry are not bounded.

    Raises:
        NotDecompressed: kombu needs a package for it.
        kombu.exceptions.DecodeError: it is not what that method has made, or more than the limit.
    """
    if not payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
        return payload
    start = len(COMPRESSED_PAYLOAD_MAGIC)
    name, _, _ = payload[start : start + LONGEST_NAME].partition(b"\x00")
    method = name.decode("ascii", "replace")
    decoder = _decoder(method)
    body: memoryview | bytes = memoryview(payload)[start + len(name) + 1 :]
    if method not in _TAKE_VIEWS:
        body = bytes(body)
    handled = sys.exception()
    try:
        return _restored(decoder, body, _most(len(payload), limit))
    except Exception as exc:  # every compressor has errors of its own
        reraise_interruption(exc, handled)
        raise DecodeError(f"compressed with {method!r}: {brief(exc)}") from exc


def _most(size: int, limit: int) -> int:
    return max(limit, TIMES * size)


def _restored(decoder: Callable[[memoryview | bytes], bytes], body: memoryview | bytes, most: int) -> bytes:
    new = _streaming(decoder)
    if new is None:
        return decoder(body)
    pieces, left = [], most
    while True:  # one stream may follow another
        stream = new()
        if hasattr(stream, "process"):  # brotli's
            piece, ended = stream.process(bytes(body), output_buffer_limit=left + 1), stream.is_finished()
        else:
            piece, ended = stream.decompress(body, left + 1), stream.eof
        left -= len(piece)
        if left < 0:
            raise ValueError(f"more than {most:,} bytes come out of {len(body):,}; raise `decompression_limit`")
        if not ended:
            raise ValueError("it is cut")
        pieces.append(piece)
        body = getattr(stream, "unused_data", b"")
        if not body:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


#: What the libraries of kombu's own methods call what decompresses up to so many bytes.
_STREAMS = ("decompressobj", "BZ2Decompressor", "LZMADecompressor", "ZstdDecompressor", "Decompressor")


def _streaming(decoder: Callable[[memoryview | bytes], bytes]) -> Callable[[], Any] | None:
    library = sys.modules.get(str(getattr(decoder, "__module__", "")))
    if getattr(library, "decompress", None) is not decoder:
        return None  # a method of the application's own
    return next((getattr(library, name) for name in _STREAMS if hasattr(library, name)), None)


def _decoder(method: str) -> Callable[[memoryview | bytes], bytes]:
    try:
        found: Callable[[memoryview | bytes], bytes] = get_decoder(method)
    except KeyError as exc:
        what = f"compressed with {method!r}, which kombu does not know here"
        if method not in _PACKAGES:
            raise DecodeError(what) from exc
        raise NotDecompressed(f"{what}: pip install {_PACKAGES[method]}. It stays as it is meanwhile") from exc
    return found


def _packed(plain: bytes, method: str) -> tuple[bytes, bytes]:
    body, content_type = compress(plain, method)
    return b"".join((COMPRESSED_PAYLOAD_MAGIC, content_type.encode(), b"\x00")), body


def _helps(plain: bytes, method: str) -> bool:
    """Whether a sample of the payload becomes smaller; all of it would keep a process busy for long."""
    step = len(plain) // PIECES
    sample = b"".join(plain[start : start + PIECE] for start in range(0, step * PIECES, step))
    return len(compress(sample, method)[0]) <= WORTH * len(sample)
