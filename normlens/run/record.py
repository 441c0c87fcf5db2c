"""How a reading lies in the file: little-endian bytes, dtype, shape, named dimensions and a checksum.

Nothing here can execute anything: a dtype is one of a short list, a shape must agree with the number of bytes that are
really there (so a record cannot claim terabytes), and every field goes into the checksum.
"""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np

from normlens.run.errors import RunCorruptError
from normlens.run.reading import Reading

__all__ = ["checksum", "clean_text", "decode_json", "decode_reading", "encode_reading"]

_DTYPES = frozenset(["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"])


def checksum(*fields: Any) -> int:
    """CRC-32 over all fields, each preceded by its length, so that no byte can move from one field to the next."""
    crc = 0
    for value in fields:
        raw = value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")
        crc = zlib.crc32(raw, zlib.crc32(len(raw).to_bytes(8, "little"), crc))
    return crc


def clean_text(text: str) -> str:
    """Return ``text`` as something UTF-8 can hold: a lone surrogate becomes its escape, all else stays."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def encode_reading(reading: Reading) -> tuple[Any, ...]:
    """Turn a reading into the columns of the table ``reading``, checksum last."""
    array = np.ascontiguousarray(reading.array).reshape(reading.array.shape)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    columns = (
        clean_text(reading.name),
        clean_text(reading.layer),
        None if reading.units is None else clean_text(reading.units),
        json.dumps([clean_text(dim) for dim in reading.dims]),
        little.dtype.str,
        json.dumps(list(little.shape)),
        little.tobytes(),
        None if math.isnan(reading.error) else reading.error,  # SQLite has no NaN: it would store NULL anyway
        reading.n,
    )
    return (*columns, checksum(*columns))


def decode_reading(columns: tuple[Any, ...], *, where: str) -> Reading:
    """Turn the columns of the table ``reading`` back into a reading.

    Args:
        columns: as made by :func:`encode_reading`.
        where: which record this is, for the error.

    Raises:
        RunCorruptError: the checksum, the dtype or the size does not agree.
    """
    *fields, stored = columns
    if checksum(*fields) != stored:
        raise RunCorruptError(f"{where}: the record does not match its checksum; the file is damaged there")
    name, layer, units, dims, dtype, shape, raw, error, n = fields
    return Reading(
        name,
        _decode_array(dtype, decode_json(shape, where=where), raw, where=where),
        layer=layer,
        units=units,
        error=math.nan if error is None else error,
        dims=tuple(decode_json(dims, where=where)),
        n=n,
    )


def decode_json(text: str, *, where: str) -> Any:
    """Parse JSON text of the file.

    Raises:
        RunCorruptError: it is not JSON, or nested so deeply that it can only be hostile.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise RunCorruptError(
            f"{where}: unreadable JSON ({type(error).__name__}); the file is damaged there"
        ) from error


def _decode_array(dtype: str, shape: Any, raw: bytes, *, where: str) -> Any:
    if dtype not in _DTYPES:
        raise RunCorruptError(f"{where}: dtype {dtype!r:.40} is not one that normlens writes")
    sizes_are_sane = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
    if not sizes_are_sane or math.prod(shape) * np.dtype(dtype).itemsize != len(raw):
        raise RunCorruptError(f"{where}: shape {shape!r:.80} of {dtype} does not agree with {len(raw)} bytes")
    array = np.frombuffer(raw, dtype=dtype).reshape(shape)
    return array if array.ndim else array.item()
