from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from normlens.run.reading import Measurement, Reading


@pytest.mark.parametrize(
    "value",
    [
        "0.5", None, {}, [object()], np.array([1.0, None]), np.array(["a"]), np.array(["2026-01-01"], "M8[D]"),
        np.zeros(1, "V8"), np.longdouble(1), np.zeros(2, np.clongdouble), 2**70,
    ],
)  # fmt: skip
def test_what_is_not_a_number_of_at_most_64_bits_is_refused(value):
    with pytest.raises(ValueError, match=r"value of reading 'w' must be numeric, of at most 64 bits.*got.*convert it"):
        Reading("w", value, dims=("unit",) * np.ndim(value))


@pytest.mark.parametrize(("value", "dims"), [(1.0, ("channel",)), (np.ones(3), ()), (np.ones((2, 3)), ("channel",))])
def test_every_axis_needs_a_name(value, dims):
    with pytest.raises(ValueError, match=r"one name in dims for each axis.*got shape .* and dims .*; pass e\.g\. dims"):
        Reading("w", value, dims=dims)


def test_a_scalar_becomes_a_python_number_of_the_same_value():
    for given in (1.5, np.float32(0.1), np.array(2.5), np.int64(-3), True, 1j, 2**63):
        value = Reading("w", given).value
        assert value == given
        assert type(value) in {float, int, bool, complex}
        assert Reading("w", given).array.shape == ()


def test_the_array_does_not_change_with_the_one_it_was_made_from():
    live = np.arange(3.0)
    reading = Reading("mean", live, dims=("channel",))
    live += 100
    np.testing.assert_array_equal(reading.array, [0.0, 1.0, 2.0])


def test_an_unknown_error_is_nan_and_an_unknown_number_of_samples_zero():
    reading = Reading("w", 1.0)
    assert math.isnan(reading.error)
    assert (reading.n, reading.units, reading.layer, reading.dims) == (0, None, "", ())


def test_errors_and_counts_are_plain_numbers_whatever_they_came_as():
    reading = Reading("w", 1.0, error=np.float32(0.5), n=np.int64(7))
    assert (type(reading.error), reading.error, type(reading.n), reading.n) == (float, 0.5, int, 7)


@pytest.mark.parametrize("record", [Reading("w", 1.0), Measurement(3, "p")])
def test_records_are_frozen(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.step = 4
