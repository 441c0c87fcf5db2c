"""The divergence of Gaussians is torch's closed form, its error the spread over repetitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from normlens.information.divergence import gaussian_kl, gaussian_kl_floor
from normlens.information.divergence.gaussian import gaussian_kl_of
from normlens.information.moments import Moments


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_closed_form_of_the_fitted_gaussians():
    now, then = normal(40, 3, 6) * torch.linspace(0.1, 9, 6) - 5, normal(30, 2, 6, seed=1) * 2 + 1
    fits = [Normal(m.mean, m.std) for m in (Moments.of(now), Moments.of(then))]
    found = gaussian_kl(Moments.of(now), Moments.of(then))
    assert found.value == pytest.approx(kl_divergence(*fits).mean().item(), rel=1e-12)
    assert found.cost == 120 + 60


def test_the_error_is_the_spread_over_repetitions():
    """Channels are repetitions, 3000 of them: their spread is known to 1.3 %; 4 of these and the bias of the method."""
    now, then = Moments.of(0.7 + 1.4 * normal(300, 1, 3000)), Moments.of(normal(400, 1, 3000, seed=1))
    assert gaussian_kl(now, then).error == pytest.approx(gaussian_kl_of(now, then).std().item(), rel=0.1)


def test_two_batches_of_one_distribution_exceed_the_floor_in_one_case_of_a_hundred_at_most():
    now, then = Moments.of(normal(400, 1, 3000)), Moments.of(normal(400, 1, 3000, seed=1))
    beyond = (gaussian_kl_of(now, then) > gaussian_kl_floor(now, 400)).double().mean().item()
    assert beyond <= 0.01 + 4 * math.sqrt(0.01 * 0.99 / 3000)
    z = 2.5758293
    assert gaussian_kl_floor(now, 400).mean().item() == pytest.approx(z**2 * 2 / 400, rel=0.02)


def test_constants_are_at_no_distance_or_infinitely_far():
    x = normal(20, 1, 3)
    constant = torch.full((20, 1, 3), 0.5, dtype=torch.float64)
    other = constant.clone()
    other[..., 1] = 2.0
    assert gaussian_kl_of(Moments.of(constant), Moments.of(other)).tolist() == [0, math.inf, 0]
    for pair in ((x, constant), (constant, x)):
        np.testing.assert_array_equal(gaussian_kl_of(*map(Moments.of, pair)), math.inf)


def test_nan_stays_nan_and_a_single_sample_has_no_floor():
    x = normal(20, 1, 2)
    x[3, 0, 1] = math.nan
    assert gaussian_kl_of(Moments.of(x), Moments.of(normal(20, 1, 2))).isnan().tolist() == [False, True]
    assert gaussian_kl_floor(Moments.of(x[:1]), 1).isnan().all()
