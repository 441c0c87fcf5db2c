from __future__ import annotations

import math

import pytest
import torch

from normlens.curvature.density import SpectralDensity, spectral_density
from normlens.curvature.operator import DenseOperator

EPS = torch.finfo(torch.float64).eps


def operator_of(eigenvalues: torch.Tensor, dtype: torch.dtype = torch.float64) -> DenseOperator:
    n = len(eigenvalues)
    noise = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    q = torch.linalg.qr(noise)[0]
    return DenseOperator(((q * eigenvalues.double()) @ q.T).to(dtype))


def network_like(n: int = 500) -> torch.Tensor:
    """A few outliers, a continuum down to 1e-9 of the largest, negative ones and exact zeros, as on a network."""
    share = torch.linspace(0, 1, n - 150, dtype=torch.float64)
    negative = -(10 ** torch.linspace(-9, -3, 100, dtype=torch.float64))
    return torch.cat([10 ** (-9 * share**0.7), negative, torch.zeros(50, dtype=torch.float64)])


@pytest.fixture(scope="module")
def hard() -> SpectralDensity:
    return spectral_density(operator_of(network_like()))


def test_n_steps_reproduce_all_eigenvalues_and_weights_that_sum_to_one() -> None:
    eigenvalues = torch.linspace(-1, 2, 60, dtype=torch.float64)
    density = spectral_density(operator_of(eigenvalues), steps=60, probes=3)
    torch.testing.assert_close(density.ritz, eigenvalues.expand(3, 60), rtol=0, atol=200 * EPS)
    torch.testing.assert_close(density.weights.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=60 * EPS)
    assert density.resolution < 1e-13
    assert density.cost == 180


def test_weights_are_the_squared_components_of_the_start_along_the_eigenvectors() -> None:
    eigenvalues = torch.linspace(1, 2, 20, dtype=torch.float64)
    density = spectral_density(DenseOperator(eigenvalues.diag()), steps=20, probes=1, generator=seeded(5))
    start = torch.randn(20, generator=seeded(5), dtype=torch.float64)
    torch.testing.assert_close(density.weights[0], (start / start.norm()).square(), rtol=0, atol=1e4 * EPS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_moments_are_the_normalized_traces_of_powers_within_their_errors() -> None:
    eigenvalues = network_like(250) * 2
    operator, covered = operator_of(eigenvalues), torch.zeros(5)
    for seed in range(40):
        moments = spectral_density(operator, steps=3, probes=60, generator=seeded(seed)).moments
        assert len(moments) == 5
        truth = [float((eigenvalues**j).mean()) for j in range(5)]
        covered += torch.tensor(
            [abs(m.value - t) <= 1.96 * m.error + 8 * EPS for m, t in zip(moments, truth, strict=True)]
        )
    assert covered[0] == 40
    assert bool((covered >= 35).all())


def test_each_probe_has_the_exact_moments_of_its_start_with_few_steps() -> None:
    operator = operator_of(torch.linspace(-1, 2, 80))
    few, many = (spectral_density(operator, steps=s, probes=4, generator=seeded(1)) for s in (4, 80))
    for degree in range(8):
        few_moment, many_moment = ((d.weights * d.ritz**degree).sum(1) for d in (few, many))
        torch.testing.assert_close(few_moment, many_moment, rtol=0, atol=1000 * EPS * 2.0**degree)


def test_the_density_integrates_to_one_and_is_the_smoothed_histogram_of_the_eigenvalues() -> None:
    eigenvalues = torch.linspace(-1, 2, 400, dtype=torch.float64)
    density = spectral_density(operator_of(eigenvalues), width=0.2)
    assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1, abs=1e-3)
    kernel = torch.distributions.Normal(eigenvalues, torch.tensor(0.2, dtype=torch.float64))
    truth = kernel.log_prob(density.grid[:, None]).exp().mean(1)
    assert bool(((density.density - truth).abs() <= 5 * density.stderr + 1e-4).all())


def test_a_count_near_zero_is_refused_and_the_naive_one_would_have_been_falsely_certain(hard: SpectralDensity) -> None:
    naive = (hard.weights * (hard.ritz <= 1e-6)).sum(1)
    truth = float((network_like() <= 1e-6).double().mean())
    assert abs(float(naive.mean()) - truth) > 4 * float(naive.std()) / math.sqrt(8)  # why it has to be refused
    for low, high in [(1e-6, 2.0), (-1e-6, 2.0), (-math.inf, 0.0), (-1e-7, 1e-7)]:
        refused = hard.fraction(low, high)
        assert math.isnan(refused.value)
        assert refused.converged is False
    assert "of zero: take more steps" in hard.refusal(1e-6, 2.0)
    assert "take more steps" in hard.refusal(-1e-7, 1e-7)


def test_a_count_beyond_the_resolution_is_within_its_error_of_the_truth(hard: SpectralDensity) -> None:
    eigenvalues = network_like()
    edges = [e for e in torch.logspace(-6, -0.2, 40).tolist() if not hard.refusal(e, 2.0)]
    assert len(edges) > 10
    for edge in edges:
        counted = hard.fraction(edge, 2.0)
        truth = float((eigenvalues > edge).double().mean())
        assert abs(counted.value - truth) <= 3 * counted.error
        assert counted.error < 0.15


def test_the_error_holds_what_too_few_steps_leave_undecided_however_many_the_probes() -> None:
    density = spectral_density(operator_of(torch.linspace(1, 2, 300)), steps=30, probes=64)
    sampling_alone = float((density.weights * (density.ritz <= 1.2)).sum(1).std()) / 8
    counted = density.fraction(-math.inf, 1.2)
    assert abs(counted.value - 0.2) <= counted.error
    assert counted.error > 3 * sampling_alone


def test_resolution_improves_with_steps_down_to_rounding() -> None:
    operator = operator_of(network_like())
    found = [spectral_density(operator, steps=s, probes=2).resolution for s in (10, 40, 160)]
    assert found[0] > 2 * found[1] > 4 * found[2]
    single = spectral_density(operator_of(torch.linspace(1, 2, 40), torch.float32), steps=40, probes=2)
    assert single.resolution == pytest.approx(10 * torch.finfo(torch.float32).eps * 2, rel=1e-3)


def test_an_edge_in_the_midst_of_an_unresolved_cluster_is_refused() -> None:
    cluster = torch.cat([torch.linspace(0.999, 1.001, 270), torch.linspace(2, 9, 30)])
    density = spectral_density(operator_of(cluster), steps=20)
    assert "may lie on either side of the edge 1" in density.refusal(1.0, 20.0)
    assert density.fraction(1.5, 20.0).value == pytest.approx(0.1, abs=3 * density.fraction(1.5, 20.0).error)
    assert "wide, the resolution is" in density.refusal(3.0, 3.0 + density.resolution / 2)


def test_an_atom_away_from_the_edge_leaves_nothing_undecided() -> None:
    spiked = torch.cat([torch.ones(200), torch.linspace(2, 9, 200)])
    density = spectral_density(operator_of(spiked), steps=60)
    half = density.fraction(0.5, 1.5)
    assert abs(half.value - 0.5) <= 3 * half.error
    assert half.error < 0.07
    assert density.fraction(-math.inf, math.inf).value == pytest.approx(1, abs=100 * EPS)


def test_quantiles_are_those_of_the_eigenvalues() -> None:
    eigenvalues = torch.linspace(-1, 2, 400, dtype=torch.float64)
    density = spectral_density(operator_of(eigenvalues))
    for q in (0.1, 0.5, 0.9):
        found = density.quantile(q)
        assert abs(found.value - float(eigenvalues.quantile(q))) <= 3 * found.error
        assert found.error < 0.1
    assert density.quantile(0).value == pytest.approx(-1, abs=0.01)
    assert density.quantile(1).value == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("level", [0.0, 3.0, -2.0])
def test_a_multiple_of_the_identity_is_one_atom(level: float) -> None:
    density = spectral_density(DenseOperator(level * torch.eye(30)), steps=10, probes=3)
    assert density.cost == 3
    torch.testing.assert_close(density.ritz, torch.full((3, 10), level, dtype=torch.float64), rtol=1e-6, atol=0)
    assert density.quantile(0.5).value == pytest.approx(level, rel=1e-6)
    assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1, abs=1e-3)


def test_one_probe_has_no_standard_error() -> None:
    density = spectral_density(operator_of(torch.linspace(1, 2, 30)), steps=5, probes=1, grid=torch.tensor([1.0, 1.5]))
    assert bool(density.stderr.isnan().all())
    assert math.isnan(density.moments[1].error)
    assert density.grid.tolist() == [1.0, 1.5]


def test_the_same_seed_gives_the_same_density_and_a_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    operator = operator_of(torch.linspace(1, 2, 30))
    silent = spectral_density(operator, steps=5, probes=2)
    assert capsys.readouterr().err == ""
    loud = spectral_density(operator, steps=5, probes=2, progress=True, generator=seeded(0))
    assert "spectral density" in capsys.readouterr().err
    assert torch.equal(silent.ritz, loud.ritz)


@pytest.mark.parametrize(("steps", "probes"), [(0, 3), (3, 0)])
def test_no_steps_or_probes_are_refused(steps: int, probes: int) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1; got steps={steps}, probes={probes}"):
        spectral_density(DenseOperator(torch.eye(3)), steps=steps, probes=probes)


def test_a_width_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be positive"):
        spectral_density(DenseOperator(torch.eye(3)), width=0.0)


def test_an_empty_interval_and_a_share_beyond_one_are_refused(hard: SpectralDensity) -> None:
    with pytest.raises(ValueError, match=r"an interval needs low < high; got \(1.0, 1.0\]"):
        hard.fraction(1.0, 1.0)
    with pytest.raises(ValueError, match=r"a share from 0 to 1; got 1.5"):
        hard.quantile(1.5)
