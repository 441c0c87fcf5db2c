"""Quantiles of |eigenvalues| against those of matrices whose eigenvalues are given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normlens.curvature.density import spectral_density
from normlens.curvature.magnitude_quantiles import magnitude_quantiles
from normlens.curvature.operator import DenseOperator

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def matrix(values: Tensor, seed: int = 0) -> DenseOperator:
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return DenseOperator(q @ torch.diag(values.double()) @ q.T)


def true_quantile(values: Tensor, q: float) -> float:
    return float(values.abs().sort().values[math.ceil(q * len(values) - 1e-9) - 1])


def indefinite(n: int) -> Tensor:
    values = torch.logspace(-3, 0, n, dtype=torch.float64)
    values[::3] *= -1
    return values


def test_their_errors_cover_the_quantiles_of_an_indefinite_matrix():
    values, covered, informative = indefinite(300), 0, 0
    for seed in range(6):
        density = spectral_density(
            matrix(values, seed), steps=80, probes=6, generator=torch.Generator().manual_seed(seed)
        )
        for q, found in zip(SHARES, magnitude_quantiles(density, SHARES), strict=True):
            assert found.converged is not math.isnan(found.value)
            if found.converged:
                covered += abs(found.value - true_quantile(values, q)) <= found.error
                informative += found.error < found.value
    assert informative >= 12, "of 30, the rest below the resolution; as wide as the spectrum they would cover anything"
    assert covered >= 0.9 * informative


def test_at_both_ends_of_its_error_the_distribution_excludes_the_share():
    checked = 0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        density = spectral_density(matrix(torch.linspace(0.01, 1, 200), seed), steps=40, probes=4, generator=generator)
        for q, found in zip(SHARES, magnitude_quantiles(density, SHARES), strict=True):
            low, high = found.value - found.error, found.value + found.error
            if low > density.resolution and high < 1:
                below, above = density.fraction(-low, low), density.fraction(-high, high)
                assert below.value + below.error < q + 1e-6
                assert above.value - above.error >= q - 1e-6
                checked += 1
    assert checked >= 8, "of 20"


def test_the_sign_of_the_eigenvalues_does_not_matter():
    values = torch.logspace(-1, 0, 60, dtype=torch.float64)
    generators = (torch.Generator().manual_seed(1) for _ in range(2))
    plain, mirrored = (
        magnitude_quantiles(spectral_density(matrix(v), steps=60, probes=4, generator=g), SHARES)
        for v, g in zip((values, -values), generators, strict=True)
    )
    for one, other in zip(plain, mirrored, strict=True):
        assert one.value == pytest.approx(other.value, rel=0.05)


def test_a_quantile_among_zeros_is_refused_and_one_above_them_is_answered():
    values = torch.cat([torch.zeros(150), torch.linspace(1, 2, 150)]).double()
    density = spectral_density(matrix(values), steps=80, probes=8)
    low, high = magnitude_quantiles(density, (0.2, 0.8))
    assert math.isnan(low.value)
    assert low.converged is False
    assert high.value == pytest.approx(true_quantile(values, 0.8), abs=high.error)
    assert high.error < 0.5


def test_one_probe_has_no_spread_and_answers_nothing():
    density = spectral_density(matrix(indefinite(50)), steps=50, probes=1)
    assert all(math.isnan(q.value) for q in magnitude_quantiles(density, SHARES))


def test_a_matrix_of_zeros_has_no_magnitude_to_tell_from_zero():
    (found,) = magnitude_quantiles(spectral_density(DenseOperator(torch.zeros(5, 5).double()), probes=2), (0.5,))
    assert math.isnan(found.value)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_outside_of_zero_to_one_is_refused(share):
    density = spectral_density(matrix(indefinite(10)), probes=2)
    with pytest.raises(ValueError, match="shares must lie between 0 and 1"):
        magnitude_quantiles(density, (share,))
