"""BIC finds the components that were put in, none in repetitions, and modes are what a density's maxima are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import signal, stats
from torch import Tensor

from normlens.information.gaussian_mixture import GaussianMixture, fit, fit_vectors
from normlens.information.modality import modality, modes

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def two(distance: float, weight: float = 0.5, var: float = 1.0) -> GaussianMixture:
    parts = ([[weight, 1 - weight]], [[0, distance]], [[1, var]])
    return GaussianMixture(*(torch.tensor(p, dtype=D) for p in parts))


@pytest.mark.parametrize("gap", [-0.01, 0.01])
def test_two_equal_components_have_two_modes_where_the_valley_between_them_is_half_as_high(gap):
    def depth(distance):  # of the valley, in units of the maxima, which stand a little nearer than the means
        grid = np.linspace(0, distance / 2, 100_001)
        density = np.exp(-0.5 * grid**2) + np.exp(-0.5 * (grid - distance) ** 2)
        return density[-1] / density.max()

    low, high = 3.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if depth(middle) > 0.5 else (low, middle)
    assert modes(two(low + gap)).tolist() == [1 if gap < 0 else 2]
    assert low == pytest.approx(3.33, abs=0.005)
    assert modes(two(2 + gap), depth=1 - 1e-12).tolist() == [1 if gap < 0 else 2]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("depth", [0.5, 0.9])
def test_modes_are_the_peaks_of_that_prominence_on_a_fine_grid(seed, depth):
    rng = np.random.default_rng(seed)
    weight, mean, sd = rng.dirichlet(np.ones(3)), rng.normal(0, 3, 3), rng.uniform(0.2, 2, 3)
    grid = np.linspace(-15, 15, 30_001)
    density = sum(w * stats.norm.pdf(grid, m, s) for w, m, s in zip(weight, mean, sd, strict=True))
    peaks, _ = signal.find_peaks(np.log(density + 1e-300), prominence=-math.log(depth))
    model = GaussianMixture(*(torch.from_numpy(p)[None] for p in (weight, mean, sd**2)))
    assert modes(model, depth=depth).item() == len(peaks)


def test_the_components_that_were_put_in_are_found():
    part = torch.arange(6000) % 3
    x = torch.stack([normal(6000), normal(6000, seed=1) + 5 * (part == 0), normal(6000, seed=2) + 6 * part], 1)
    found = modality(x, most=4)
    assert found.components.tolist() == [1, 2, 3]
    assert found.modes.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.mixture.means[2, :3], [0, 6, 12], atol=0.15)
    assert found.mixture.weights[1, 2:].tolist() == [0, 0]
    np.testing.assert_allclose(found.mixture.separation()[1], 5 / math.sqrt(2), rtol=0.05)


@pytest.mark.parametrize("shape", [torch.exp, torch.square, torch.special.ndtr, torch.sinh])
def test_a_skewed_uniform_or_heavy_tailed_channel_takes_several_components_and_has_one_mode(shape):
    found = modality(shape(normal(4000, 8)))
    assert (found.components > 1).all()
    assert (found.modes == 1).all()


def test_one_gaussian_is_enough_for_a_gaussian():
    """Two components cost 3/2 ln 500 = 9.3 nats; about one channel in a hundred goes wrong."""
    found = modality(normal(500, 200), bins=128)
    assert (found.components > 1).sum() <= 4
    assert (found.gain >= 0).all()


def test_repetitions_are_no_evidence_where_their_number_is_not_counted():
    x = normal(60, 50).repeat_interleave(40, 0)
    honest, fooled = modality(x, independent=60, bins=128), modality(x, bins=128)
    assert (honest.components > 1).double().mean() < 0.1
    assert (fooled.components > 1).double().mean() > 0.5
    alone = modality(x[::40])
    np.testing.assert_allclose(honest.bic[:, 0], alone.bic[:, 0], rtol=1e-10)


def test_the_gain_is_half_the_difference_of_the_criteria_of_separate_fits():
    x = normal(1000, 3) + 6 * (torch.arange(1000) % 4 == 0)[:, None]
    found = modality(x, most=2, bins=256, restarts=3)
    expected = (fit(x, 1, bins=256).bic - fit(x, 2, bins=256, restarts=3).bic) / 2
    np.testing.assert_allclose(found.gain, expected, atol=0.01)
    np.testing.assert_allclose(found.mixture.log_likelihood, found.mixture.log_density(x).mean(0), rtol=1e-12)


def test_a_constant_channel_has_neither_components_nor_modes():
    x = torch.cat([normal(300, 1), torch.ones(300, 1, dtype=D)], 1)
    found = modality(x)
    for part in (found.bic[:, 0], found.components, found.modes, found.gain):
        assert part.isnan().tolist() == [False, True]


def test_impossible_requests_are_refused():
    x = normal(30, 2)
    with pytest.raises(ValueError, match=r"most of at least 1.* got 0 and 30"):
        modality(x, most=0)
    with pytest.raises(ValueError, match="independent from 1 to the number of values, 30; got 3 and 31"):
        modality(x, independent=31)
    with pytest.raises(ValueError, match="depth between 0 and 1; got 1"):
        modes(two(1), depth=1)
    with pytest.raises(ValueError, match="one of vectors: use fit"):
        modes(fit_vectors(x, 2))
