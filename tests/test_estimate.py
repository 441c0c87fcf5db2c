"""A number prints with what is known about it, and with nothing that is not."""

from __future__ import annotations

import dataclasses
import math

import pytest

from normlens.estimate import Estimate


def test_an_estimate_is_its_value_wherever_a_float_is_asked_for():
    assert float(Estimate(1 / 3, error=0.1)) == 1 / 3
    assert math.sqrt(Estimate(4.0)) == 2.0


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(1.5), "1.5"),
        (Estimate(2 / 3), "0.666667"),
        (Estimate(2 / 3, error=0.0123), "0.666667 ± 0.012"),
        (Estimate(1.0, error=0.0), "1 ± 0"),
        (Estimate(1.0, converged=True), "1"),
        (Estimate(1.0, converged=None), "1"),
        (Estimate(3.0, error=0.5, converged=False), "3 ± 0.5 (not converged)"),
        (Estimate(math.nan), "nan"),
    ],
)
def test_an_estimate_prints_its_error_and_its_failure_where_it_has_them(estimate, text):
    assert str(estimate) == text


def test_what_a_method_cannot_know_is_nan_or_none_and_never_zero():
    bare = Estimate(1.0)
    assert math.isnan(bare.error)
    assert math.isnan(bare.cost)
    assert bare.converged is None


def test_an_estimate_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="value"):
        Estimate(1.0).value = 2.0  # type: ignore[misc]
