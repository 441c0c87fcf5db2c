"""IDX files: the arrays of bytes in which MNIST is published, read without trusting their header."""

from __future__ import annotations

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normlens.data.errors import DataError

__all__ = ["read_idx"]

UNSIGNED_BYTE = 0x08
DEFLATE_LIMIT = 1032
"""Deflate cannot expand a byte to more than this (zlib.net, "zlib Technical Details": 258 bytes from two bits)."""
CHUNK = 1 << 20


def read_idx(path: Path, *, ndim: int, published: str) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or, when its name ends in ``.gz``, gzip.

    Header: two zero bytes, the type 0x08, the number of dimensions, then each dimension as a big-endian uint32. What it
    claims is compared with the size of the file before anything is read, and never more than the claim plus one byte
    is decompressed; so neither a lying header nor a gzip bomb can fill the memory.

    Args:
        path: the file.
        ndim: how many dimensions it must have.
        published: where the data set is published, for the error.

    Raises:
        DataError: not an IDX file of this many dimensions, truncated, too long or not gzip.
    """
    try:
        with _open(path) as stream:
            return _parse(stream, path, ndim, published)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError.about(
            path, must="a complete gzip file", came=f"decompressing it failed ({error})", published=published
        ) from error


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parse(stream: BufferedIOBase, path: Path, ndim: int, published: str) -> NDArray[np.uint8]:
    shape = _read_shape(stream, path, ndim, published)
    expected = math.prod(shape)
    size = path.stat().st_size
    must = f"an IDX file with {expected} bytes after its header, which claims the shape {shape}"
    if not 1 <= expected <= size * (DEFLATE_LIMIT if path.suffix == ".gz" else 1):
        raise DataError.about(path, must=must, came=f"its size of {size} bytes rules that out", published=published)
    body = _read_at_most(stream, expected + 1)
    if len(body) != expected:
        found = "more came" if len(body) > expected else f"{len(body)} came"
        raise DataError.about(path, must=must, came=found, published=published)
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _read_shape(stream: BufferedIOBase, path: Path, ndim: int, published: str) -> tuple[int, ...]:
    magic = bytes([0, 0, UNSIGNED_BYTE, ndim])
    header = _read_at_most(stream, 4 + 4 * ndim)
    if header[:4] != magic or len(header) < 4 + 4 * ndim:
        raise DataError.about(
            path,
            must=f"an IDX file of {ndim} dimensions, which begins with {magic.hex(' ')} and {ndim} sizes",
            came=f"it begins with {header.hex(' ') or 'nothing'}",
            published=published,
        )
    return tuple(int(size) for size in np.frombuffer(header, dtype=">u4", offset=4))


def _read_at_most(stream: BufferedIOBase, count: int) -> bytearray:
    """Read ``count`` bytes or what there is, in chunks: asking for all at once would allocate what a header claims."""
    found = bytearray()
    while len(found) < count and (chunk := stream.read(min(CHUNK, count - len(found)))):
        found += chunk
    return found
