"""How a measurement and a reading lie in the file: little-endian bytes, dtype, shape, named dimensions and a checksum.

Nothing here can execute anything: every column must be of its type, a dtype is one of a short list, a shape must agree
with the number of bytes that are really there (so a record cannot claim terabytes), and all of it is in the checksum.
"""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlens.run.errors import RunCorruptError
from normlens.run.reading import Measurement, Reading

__all__ = [
    "MEASUREMENT",
    "SESSION",
    "checksum",
    "clean_text",
    "decode_json",
    "decode_measurement",
    "decode_reading",
    "encode_measurement",
    "encode_reading",
    "is_whole",
]

_NUMBER = float | None  # SQLite has no NaN: it would store NULL anyway
SESSION = (int, int, str)
MEASUREMENT = (int, int, int, str, str, str, str, _NUMBER, _NUMBER, int, int)
_READING = (str, str, str | None, str, str, str, bytes, _NUMBER, int)

_DTYPES = frozenset(["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"])


def checksum(*fields: Any) -> int:
    """CRC-32 over all fields, each preceded by its length, so that no byte can move from one field to the next."""
    crc = 0
    for value in fields:
        raw = value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")
        crc = zlib.crc32(raw, zlib.crc32(len(raw).to_bytes(8, "little"), crc))
    return crc


def is_whole(columns: tuple[Any, ...], types: tuple[Any, ...]) -> bool:
    """Whether ``columns``, checksum last, have these types (SQLite does not enforce them) and match their checksum."""
    *fields, stored = columns
    typed = len(fields) == len(types) and all(
        isinstance(field, kind) for field, kind in zip(fields, types, strict=True)
    )
    return typed and checksum(*fields) == stored


def clean_text(text: str) -> str:
    """Return ``text`` as something UTF-8 can hold: a lone surrogate becomes its escape, all else stays."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def encode_measurement(index: int, session: int, measurement: Measurement, first_reading: int) -> tuple[Any, ...]:
    """Turn a measurement into the columns of the table ``measurement``, checksum last."""
    m = measurement
    texts = [clean_text(text) for text in (m.probe, m.status, m.message, m.mode)]
    timing = (_stored(m.seconds), _stored(m.elapsed))
    columns = (index, session, int(m.step), *texts, *timing, first_reading, len(m.readings))
    return (*columns, checksum(*columns))


def decode_measurement(columns: tuple[Any, ...]) -> Measurement:
    """Turn the columns of a whole row, from ``step`` to ``elapsed``, back into a measurement without its readings."""
    step, probe, status, message, mode, seconds, elapsed = columns
    return Measurement(step, probe, status, message, mode, _restored(seconds), _restored(elapsed))


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
        _stored(reading.error),
        reading.n,
    )
    return (*columns, checksum(*columns))


def decode_reading(columns: tuple[Any, ...], *, where: str) -> Reading:
    """Turn the columns of the table ``reading`` back into a reading.

    Args:
        columns: as made by :func:`encode_reading`.
        where: which record this is, for the error.

    Raises:
        RunCorruptError: the checksum, a type, the dtype or the size does not agree.
    """
    if not is_whole(columns, _READING):
        raise RunCorruptError(f"{where}: the record does not match its checksum; the file is damaged there")
    name, layer, units, dims, dtype, shape, raw, error, n, _ = columns
    array = _decode_array(dtype, decode_json(shape, where=where), raw, where=where)
    named = decode_json(dims, where=where)
    if not isinstance(named, list) or len(named) != array.ndim or not all(isinstance(dim, str) for dim in named):
        raise RunCorruptError(f"{where}: dims {named!r:.80} do not name the axes of shape {array.shape}")
    value = array if array.ndim else array.item()
    return Reading(
        name, value, layer=layer, units=units, error=_restored(error), dims=tuple(map(clean_text, named)), n=n
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


def _decode_array(dtype: str, shape: Any, raw: bytes, *, where: str) -> NDArray[Any]:
    if dtype not in _DTYPES:
        raise RunCorruptError(f"{where}: dtype {dtype!r:.40} is not one that normlens writes")
    sizes_are_sane = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes_are_sane or math.prod(shape) * np.dtype(dtype).itemsize != len(raw):
        raise RunCorruptError(f"{where}: shape {shape!r:.80} of {dtype} does not agree with {len(raw)} bytes")
    try:
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
    except (ValueError, OverflowError) as error:  # more axes than numpy has, or a huge one beside one of size 0
        raise RunCorruptError(f"{where}: shape {shape!r:.80} is not that of an array") from error


def _stored(number: float) -> float | None:
    return None if math.isnan(number) else float(number) + 0.0  # SQLite keeps no sign of zero: -0.0 + 0.0 is 0.0


def _restored(number: float | None) -> float:
    return math.nan if number is None else number
