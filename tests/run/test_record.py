from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest

from normlens.run.errors import RunCorruptError
from normlens.run.reading import Measurement, Reading
from normlens.run.record import (
    MEASUREMENT,
    checksum,
    clean_text,
    decode_json,
    decode_measurement,
    decode_reading,
    encode_measurement,
    encode_reading,
    is_whole,
)

NAMES = ("name", "layer", "units", "dims", "dtype", "shape", "value", "error", "n")


def signed(**changes):
    """The columns of a reading with some of them replaced, under a checksum that is right for them."""
    columns = dict(zip(NAMES, encode_reading(Reading("w", np.arange(4.0), dims=("unit",)))[:-1], strict=True))
    columns |= changes
    return (*columns.values(), checksum(*columns.values()))


def test_a_reading_comes_back_to_the_last_bit(every_kind, told):
    for measurement in every_kind:
        for reading in measurement.readings:
            back = decode_reading(encode_reading(reading), where="here")
            little = Reading(
                reading.name, reading.array.astype(reading.array.dtype.newbyteorder("<")), layer=reading.layer,
                units=reading.units, error=reading.error + 0.0, dims=reading.dims, n=reading.n,
            )  # fmt: skip
            assert told(Measurement(0, "p", readings=(back,))) == told(Measurement(0, "p", readings=(little,)))


def test_the_bytes_in_the_file_are_little_endian():
    raw = encode_reading(Reading("w", np.array([1, 258], dtype=">i2"), dims=("unit",)))[6]
    assert raw == b"\x01\x00\x02\x01"


def test_a_measurement_comes_back_without_its_readings(every_kind, told):
    for measurement in every_kind:
        columns = encode_measurement(5, 2, measurement, 7)
        assert is_whole(columns, MEASUREMENT)
        assert columns[:3] == (5, 2, measurement.step)
        assert columns[9:11] == (7, len(measurement.readings))
        expected = Measurement(
            measurement.step, measurement.probe, measurement.status, measurement.message, measurement.mode,
            measurement.seconds + 0.0, measurement.elapsed,
        )  # fmt: skip
        assert told(decode_measurement(columns[2:9])) == told(expected)


def test_a_step_may_be_a_number_of_numpy():
    assert encode_measurement(1, 1, Measurement(np.int64(3), "p"), 1) == encode_measurement(
        1, 1, Measurement(3, "p"), 1
    )


def test_the_checksum_is_the_crc_of_lengths_and_fields():
    text = b"".join(len(raw).to_bytes(8, "little") + raw for raw in (b"12", b"'ab'", b"None", b"\x00\xff"))
    assert checksum(12, "ab", None, b"\x00\xff") == zlib.crc32(text)


def test_the_checksum_notices_a_byte_that_moves_to_the_next_field():
    assert checksum("ab", "c") != checksum("a", "bc")
    assert checksum(b"", b"x") != checksum(b"x", b"")


def test_a_change_of_any_column_is_noticed():
    columns = encode_reading(Reading("w", np.arange(4.0), layer="a", units="s", error=0.5, dims=("unit",), n=3))
    raw = bytes([columns[6][0] ^ 1]) + columns[6][1:]
    for position, other in enumerate(("v", "b", None, '["x"]', "<i8", "[2, 2]", raw, 0.25, 4, columns[-1] ^ 1)):
        changed = (*columns[:position], other, *columns[position + 1 :])
        with pytest.raises(RunCorruptError, match=r"file 7: the record does not match its checksum"):
            decode_reading(changed, where="file 7")


@pytest.mark.parametrize("dtype", ["|O", "O", "<f16", "|V8", "<M8[s]", "<U2", ">f8", "f8,f8", "x" * 10_000])
def test_a_dtype_that_we_do_not_write_is_refused_before_numpy_sees_it(dtype):
    with pytest.raises(RunCorruptError, match=r"dtype '.{0,40}is not one that normlens writes"):
        decode_reading(signed(dtype=dtype), where="here")


@pytest.mark.parametrize(
    "shape", [[2**40], [2**20, 2**20, 2**20], [3], [-4], [-2, -2], [4.0], [True, 4], 4, "4", None, {"0": 4}, [[4]]]
)
def test_a_shape_that_the_bytes_do_not_fill_is_refused(shape):
    with pytest.raises(RunCorruptError, match=r"shape .* of <f8 does not agree with 32 bytes"):
        decode_reading(signed(shape=json.dumps(shape)), where="here")


@pytest.mark.parametrize("shape", [[0, 2**62], [0, 2**70], [0] * 100])
def test_an_empty_array_of_impossible_shape_is_refused(shape):
    with pytest.raises(RunCorruptError, match=r"shape .* is not that of an array"):
        decode_reading(signed(shape=json.dumps(shape), value=b""), where="here")


@pytest.mark.parametrize("dims", [[], ["a", "b"], "a", 3, None, [3], [None], {"a": 1}])
def test_dims_that_do_not_name_the_axes_are_refused(dims):
    with pytest.raises(RunCorruptError, match=r"dims .* do not name the axes of shape \(4,\)"):
        decode_reading(signed(dims=json.dumps(dims)), where="here")


@pytest.mark.parametrize("column", NAMES)
def test_a_column_of_the_wrong_type_is_refused_although_its_checksum_is_right(column):
    wrong = b"x" if column != "value" else "x" * 32
    with pytest.raises(RunCorruptError, match="does not match its checksum"):
        decode_reading(signed(**{column: wrong}), where="here")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nul", "[1", "1" * 10_000, '{"a": 1} x'])
def test_unreadable_json_is_a_typed_error(text):
    with pytest.raises(RunCorruptError, match=r"here: unreadable JSON \(.*Error\); the file is damaged there"):
        decode_json(text, where="here")


def test_text_stays_as_it_is_but_for_what_utf8_cannot_hold():
    for text in ("café ☕", "nul\x00", "</script>", "\u202e", "w$_{$", ""):
        assert clean_text(text) == text
    assert clean_text("lone\ud800!") == r"lone\ud800!"
    assert clean_text(3) == "3"


def test_not_a_number_is_kept_where_sqlite_has_none():
    assert encode_reading(Reading("w", 1.0))[7] is None
    assert math.isnan(decode_reading(encode_reading(Reading("w", 1.0)), where="here").error)
