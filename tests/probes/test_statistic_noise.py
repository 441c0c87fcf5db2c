"""Noise of batch statistics: all cuts by enumeration, exact laws, and standard errors by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from normlens.probes.statistic_noise import Noise, average, standard_error


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def every(noise: Noise) -> Tensor:
    return torch.ones_like(noise.variance, dtype=torch.bool)


def test_the_moments_are_those_of_scipy():
    x = uniform(40, 5, 3) ** 2
    flat = x.reshape(-1, 3).numpy()
    noise = Noise.of(x)
    np.testing.assert_allclose(noise.mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(noise.excess_kurtosis, stats.kurtosis(flat), rtol=1e-10)
    scatter = x.mean(1).numpy().var(0, ddof=1)
    np.testing.assert_allclose(noise.variance, flat.var(0) + scatter / 40, rtol=1e-12)
    assert (noise.samples, noise.positions) == (40, 5)


def test_the_design_is_the_variance_of_batch_means_averaged_over_every_cut_into_batches():
    x = normal(6, 3, 2) + normal(6, 1, 2, seed=1)
    noise = Noise.of(x)
    found = []
    for order in itertools.permutations(range(6)):  # every cut into three batches of two, many times over
        found.append(x[list(order)].reshape(3, 6, 2).mean(1).var(0))
    values_of_a_batch = 2 * 3
    expected = torch.stack(found).mean(0) * values_of_a_batch / noise.variance
    np.testing.assert_allclose(noise.design, expected, rtol=1e-10)


def test_one_value_per_sample_has_design_one_and_equal_positions_have_their_number():
    x = normal(50, 1, 4)
    np.testing.assert_allclose(Noise.of(x).design, 1, rtol=1e-12)
    np.testing.assert_allclose(Noise.of(x.expand(50, 7, 4)).design, 7, rtol=1e-12)


def test_independent_positions_have_design_one_within_the_standard_error():
    noise = Noise.of(normal(512, 16, 8))
    error = noise.design_error(every(noise))
    assert 0.5 * math.sqrt(2 / (512 * 8)) < error < 2 * math.sqrt(2 / (512 * 8)), "a chi square of 512 x 8 numbers"
    assert abs(float(noise.design.mean()) - 1) < 4 * error


def gaussian_law(m: int) -> float:
    """Var(sigma_B) 4M / (2 sigma^2) of M Gaussian values exactly, from the mean of a chi distribution."""
    ratio = math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2))
    return 2 * m * ((m - 1) / m - 2 / m * ratio**2)


@pytest.mark.parametrize("batch", [32, 8])
def test_the_deviation_of_gaussian_batches_scatters_by_the_exact_law_of_the_chi_distribution(batch):
    noise = Noise.of(normal(4096, 1, 16))
    found, error = noise.deviation_noise(batch, every(noise), generator(1))
    assert gaussian_law(32) == pytest.approx(0.9918, abs=5e-5)
    assert found == pytest.approx(gaussian_law(batch), abs=4 * error + 0.003)
    assert error < 0.02


@pytest.mark.parametrize(("draw", "kurtosis"), [(uniform, -1.2), (lambda *s: -uniform(*s).log(), 6.0)])
def test_the_kurtosis_is_what_the_deviation_s_scatter_follows(draw, kurtosis):
    """With 512 values a batch the second order is below 2 % for the uniform, 5 % for the exponential channels."""
    noise = Noise.of(draw(4096, 4, 16))
    assert float(noise.excess_kurtosis.mean()) == pytest.approx(kurtosis, abs=0.3)
    found, error = noise.deviation_noise(128, every(noise), generator(1))
    assert found == pytest.approx(1, abs=4 * error + 0.02)
    assert 4 * error < 0.2


def test_the_law_is_not_yet_reached_by_32_values_with_heavy_tails():
    noise = Noise.of(-uniform(4096, 1, 16).log())
    small, _ = noise.deviation_noise(32, every(noise), generator(1))
    assert 0.8 < small < 0.92


@pytest.mark.parametrize("positions", [1, 9])
def test_the_standard_errors_are_the_spread_over_independent_data(positions):
    found, errors = [], []
    for seed in range(40):
        common = normal(128, 1, 6, seed=1000 + seed)
        noise = Noise.of(normal(128, positions, 6, seed=seed) + common)
        value, error = noise.deviation_noise(16, every(noise), generator(seed))
        found.append((float(noise.design.mean()), value))
        errors.append((noise.design_error(every(noise)), error))
    spread, stated = np.std(found, axis=0, ddof=1), np.mean(errors, axis=0)
    within = 5 / math.sqrt(2 * 40)  # of a standard deviation of 40 numbers
    assert stated[1] == pytest.approx(spread[1], rel=within)
    if positions == 1:
        assert max(stated[0], spread[0]) < 1e-14
    else:
        assert stated[0] == pytest.approx(spread[0], rel=within)


def jackknife(values: list[float]) -> float:
    return math.sqrt((len(values) - 1) * float(np.var(values)))


def law(x: Tensor) -> float:
    """P Var(q_n) / (E x^4 - sigma^4) of central moments, averaged over channels."""
    centered = x - x.mean((0, 1))
    squares = centered.square().mean(1)
    return float(
        (x.shape[1] * squares.var(0, correction=0) / ((centered**4).mean((0, 1)) - squares.mean(0) ** 2)).mean()
    )


def test_the_standard_errors_are_those_of_the_jackknife():
    x = normal(600, 6, 3) + normal(600, 1, 3, seed=1)
    noise = Noise.of(x)
    left = [torch.cat([x[:n], x[n + 1 :]]) for n in range(600)]
    of_design = jackknife([float(Noise.of(part).design.mean()) for part in left])
    assert noise.design_error(every(noise)) == pytest.approx(of_design, rel=0.05)
    assert noise.law_error(every(noise)) == pytest.approx(jackknife(list(map(law, left))), rel=0.1)


def test_with_one_value_per_sample_the_law_holds_to_first_order_without_error():
    noise = Noise.of(normal(150, 1, 3))
    assert noise.law_error(every(noise)) < 1e-14
    assert law(normal(150, 1, 3)) == pytest.approx(1, rel=1e-12)


def test_the_squared_error_of_a_log_variance_is_2_plus_the_kurtosis_for_independent_values():
    noise = Noise.of(normal(4096, 1, 64))
    assert float(noise.log_variance_noise.mean()) == pytest.approx(2, abs=0.05)


def test_a_constant_channel_has_no_variance_and_is_left_out_of_the_average():
    x = torch.cat([normal(30, 2, 2), torch.full((30, 2, 1), 0.1, dtype=torch.float64)], 2)
    noise = Noise.of(x)
    assert noise.variance[2] == 0
    assert average(noise.design, noise.variance != 0) == pytest.approx(float(noise.design[:2].mean()))
    assert math.isnan(average(noise.design, noise.variance < 0))


def test_a_single_sample_knows_no_scatter_and_float16_is_widened():
    noise = Noise.of(normal(1, 5, 2))
    assert bool(noise.design.isnan().all())
    assert math.isnan(standard_error(torch.ones(1)))
    assert Noise.of(normal(9, 2, 2).half()).mean.dtype == torch.float64


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"noise needs values of shape \(samples, positions, channels\); got \(3, 4\)"):
        Noise.of(normal(3, 4))
