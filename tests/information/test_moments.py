"""Moments agree with NumPy in float64, and their standard errors with what repetition shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlens.information import moments as module
from normlens.information.moments import Moments

FIELDS = ("mean", "variance", "mean_error", "log_std_error")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(samples: int, positions: int, channels: int, seed: int = 0) -> Tensor:
    """Skewed values that share half of their variance between the positions of a sample."""
    common = normal(samples, 1, channels, seed=seed)
    return (0.5 * (common + normal(samples, positions, channels, seed=seed + 1))).exp()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_moments_are_numpy_s_in_float64_also_far_from_zero(dtype):
    x = (1000 + 3 * normal(50, 7, 4)).to(dtype)
    exact = x.double().numpy()
    found = Moments.of(x)
    assert found.count == 350
    # The mean is good to a few ulp of 1000; a deviation of about 3 carries the same absolute error.
    ulp = 1000 * np.finfo(np.float64).eps
    np.testing.assert_allclose(found.mean.numpy(), exact.mean((0, 1)), rtol=0, atol=8 * ulp)
    np.testing.assert_allclose(found.variance.numpy(), exact.var((0, 1)), rtol=16 * ulp)
    np.testing.assert_allclose(found.std.numpy(), exact.std((0, 1)), rtol=16 * ulp)


def test_standard_errors_are_those_of_the_sample_averages():
    x = correlated(30, 5, 3)
    exact, found = x.numpy(), Moments.of(x)
    means, squares = exact.mean(1), ((exact - exact.mean((0, 1))) ** 2).mean(1)
    np.testing.assert_allclose(found.mean_error, means.std(0, ddof=1) / math.sqrt(30), rtol=1e-12)
    log_error = squares.std(0, ddof=1) / math.sqrt(30) / (2 * exact.var((0, 1)))
    np.testing.assert_allclose(found.log_std_error, log_error, rtol=1e-12)


def test_standard_errors_are_the_spread_that_repetition_shows():
    """Each channel is a repetition. The spread of R of them is known to 1/sqrt(2R); 4 of those are allowed."""
    repetitions = 3000
    common = normal(200, 1, repetitions, seed=1)
    found = Moments.of(2 + common + normal(200, 4, repetitions, seed=2))
    tolerance = 4 / math.sqrt(2 * repetitions)
    assert_close(found.mean_error.square().mean().sqrt(), found.mean.std(), rtol=tolerance, atol=0)
    assert_close(found.log_std_error.square().mean().sqrt(), found.std.log().std(), rtol=tolerance, atol=0)
    # Taking every value for independent would be wrong by far more: Var m_n = 1 + 1/4, not 2/4.
    assert_close(found.mean_error.mean().item(), math.sqrt(1.25 / 200), rtol=0.02, atol=0)


@pytest.mark.parametrize("chunk", [1, 36, 100, 359, 1 << 30])
def test_the_size_of_the_chunks_changes_nothing(monkeypatch, chunk):
    x = correlated(31, 4, 9)
    whole = Moments.of(x)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    found = Moments.of(x)
    for name in FIELDS:
        assert_close(getattr(found, name), getattr(whole, name), rtol=1e-13, atol=0)


def test_a_single_sample_has_moments_but_no_errors():
    found = Moments.of(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    assert found.mean.tolist() == [2, 5]
    assert found.variance.tolist() == [1, 0]
    assert found.mean_error.isnan().all()
    assert found.log_std_error.isnan().all()


@pytest.mark.parametrize("samples", [3, 7, 1000])
def test_a_constant_channel_has_exactly_no_variance(samples):
    constants = torch.tensor([0.1, -1 / 3, 1e6 / 7, 0.0], dtype=torch.float64)
    found = Moments.of(constants.expand(samples, 11, 4))
    assert torch.equal(found.mean, constants)
    assert found.variance.tolist() == [0, 0, 0, 0]
    assert found.mean_error.tolist() == [0, 0, 0, 0]


def test_a_channel_that_is_not_finite_says_so_and_spoils_no_other():
    x = normal(6, 2, 4)
    x[2, 1, 1], x[3, 0, 2], x[0, 0, 3] = math.nan, math.inf, math.inf
    found = Moments.of(x)
    for name in FIELDS:
        assert getattr(found, name).isfinite().tolist() == [True, False, False, False]


def test_moments_leave_their_input_alone():
    x = normal(5, 2, 3)
    copy = x.clone()
    Moments.of(x)
    assert torch.equal(x, copy)


@pytest.mark.parametrize("shape", [(4, 3), (0, 2, 3), (2, 0, 3), (1, 2, 3, 4)])
def test_another_shape_or_no_values_are_refused(shape):
    with pytest.raises(ValueError, match=r"moments need values of shape \(samples, positions, channels\); got \("):
        Moments.of(torch.zeros(shape))
