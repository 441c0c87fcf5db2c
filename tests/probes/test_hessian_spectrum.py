"""The ends of the Hessian's spectrum against the dense float64 Hessian."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.hessian_spectrum import HessianSpectrum
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading
from normlens.run.schedule import at
from support.curvature import dense_hessian


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    for seed, p in enumerate(layers.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return layers


X, Y = normal(20, 4, seed=7), torch.arange(20) % 3
ROUNDING = 53 * torch.finfo(torch.float64).eps  # of the dense eigenvalues, relative to the largest


def step_of(model: nn.Module, data: object = (X, Y)) -> Step:
    risk = EmpiricalRisk(model, functional.cross_entropy, data)
    return Step(3, risk, Activations(risk), Previous(), None, torch.Generator().manual_seed(1))


def read(probe: HessianSpectrum, step: Step) -> dict[str, Reading]:
    return {reading.name: reading for reading in probe(step)}


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
@pytest.mark.parametrize("training", [True, False])
def test_both_ends_are_those_of_the_dense_hessian_within_their_errors(training, tol):
    model = network().train(training)
    exact = torch.linalg.eigvalsh(dense_hessian(model, functional.cross_entropy, X, Y)).flip(0).numpy()
    found = read(HessianSpectrum(tol=tol), step_of(model))
    assert exact[-1] < -1e-3 * exact[0], "the network has negative curvature, or lambda_min says nothing"
    assert found["top"].value == pytest.approx(exact[:5], abs=found["top"].error + ROUNDING * exact[0], rel=0)
    assert found["lambda_max"].value == pytest.approx(
        exact[0], abs=found["lambda_max"].error + ROUNDING * exact[0], rel=0
    )
    assert found["lambda_min"].value == pytest.approx(
        exact[-1], abs=found["lambda_min"].error + ROUNDING * exact[0], rel=0
    )
    assert 0 < found["lambda_max"].error <= tol * exact[0]
    assert 0 < found["lambda_min"].error <= 10 * tol * exact[0]


def test_the_top_has_k_values_in_descending_order_and_the_first_is_lambda_max():
    found = read(HessianSpectrum(k=3), step_of(network()))
    assert (found["top"].array.shape, found["top"].dims) == ((3,), ("index",))
    assert np.all(np.diff(found["top"].array) < 0)
    assert found["top"].array[0] == found["lambda_max"].value


def test_several_batches_are_one_mean_over_all_their_samples():
    """In train mode each batch has statistics of its own: the Hessian is the weighted mean of theirs."""
    model, parts = network(), ((X[:12], Y[:12]), (X[12:], Y[12:]))
    parts_of = [len(x) / 20 * dense_hessian(model, functional.cross_entropy, x, y) for x, y in parts]
    exact = torch.linalg.eigvalsh(parts_of[0] + parts_of[1]).flip(0).numpy()
    found = read(HessianSpectrum(tol=1e-8), step_of(model, list(parts)))
    for name, value in (("lambda_max", exact[0]), ("lambda_min", exact[-1])):
        assert found[name].value == pytest.approx(float(value), abs=found[name].error + ROUNDING * exact[0], rel=0)
        assert found[name].n == 20


def test_a_later_measurement_starts_from_the_last_vectors_finds_the_same_and_costs_less():
    first = read(HessianSpectrum(k=2), step_of(network()))
    known = {(r.layer, r.name): r for r in first.values()}
    again = read(HessianSpectrum(k=2), replace(step_of(network()), previous=Previous(known, known)))
    largest = float(first["lambda_max"].value)
    for name in ("top", "lambda_min"):
        difference = np.abs(again[name].array - first[name].array).max()
        assert difference <= first[name].error + again[name].error + 1e-3 * largest
    assert again["matvecs"].value < first["matvecs"].value
    assert not first["vectors"].stored
    assert not first["bottom_vectors"].stored


def test_products_are_counted_and_limited_for_each_end():
    found = read(HessianSpectrum(k=1, tol=1e-1, max_matvecs=30), step_of(network()))
    assert 2 <= found["matvecs"].value <= 60


def test_a_largest_eigenvalue_that_has_not_converged_is_no_reading():
    with pytest.raises(
        RuntimeError, match=r"lambda_max must converge; after \d+ products .*: raise max_matvecs or tol"
    ):
        read(HessianSpectrum(max_matvecs=2), step_of(network()))


def test_with_as_many_steps_as_parameters_the_density_is_that_of_the_dense_spectrum():
    """Every Ritz value is an eigenvalue then; the weights of a probe are its squared components along eigenvectors."""
    model = network()
    exact = torch.linalg.eigvalsh(dense_hessian(model, functional.cross_entropy, X, Y)).numpy()
    found = read(HessianSpectrum(density_probes=3, density_steps=len(exact)), step_of(model))
    ritz, weights = found["ritz"].array, found["ritz_weights"].array
    assert (found["ritz"].dims, ritz.shape[0]) == (("probe", "node"), 3)
    away = np.abs(ritz[..., None] - exact).min(-1)
    assert away[weights > 1e-12].max() < 1e-7 * exact[-1]
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    grid, width = found["grid"].array, found["density_width"].value
    bells = np.exp(-(((grid[:, None, None] - ritz) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    each = (bells * weights).sum(-1)
    np.testing.assert_allclose(found["density"].array, each.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["density_stderr"].array, each.std(1, ddof=1) / np.sqrt(3), rtol=1e-9, atol=1e-12)
    edge = found["resolution"].value
    ends = {"negative": (-np.inf, -edge), "flat": (-edge, edge), "positive": (edge, np.inf)}
    for name, (low, high) in ends.items():
        share = found[f"share_{name}"]
        of_each = (weights * ((low < ritz) & (ritz <= high))).sum(1)
        assert share.value == pytest.approx(of_each.mean(), abs=1e-12), name
        assert share.error >= of_each.std(ddof=1) / np.sqrt(3) - 1e-12, name
        assert abs(share.value - ((low < exact) & (exact <= high)).mean()) < 4 * share.error, name
        assert share.n == found["density"].n == 20


def test_the_density_leaves_the_ends_of_the_spectrum_as_they_are_and_comes_when_it_is_asked_for():
    without = read(HessianSpectrum(), step_of(network()))
    probe = HessianSpectrum(density_probes=2, density_steps=5, density_when=at(3))
    due = read(probe, step_of(network()))
    assert set(without) == {"top", "lambda_max", "lambda_min", "matvecs", "vectors", "bottom_vectors"}
    assert {name: due[name].array.tobytes() for name in without} == {n: r.array.tobytes() for n, r in without.items()}
    assert due["density_matvecs"].value == 10
    assert set(read(probe, replace(step_of(network()), index=4))) == set(without)
    assert HessianSpectrum(density_probes=2, density_steps=5).cost(step_of(network())) == 230


def test_a_matrix_of_zeros_has_a_density_but_no_shares():
    model = nn.Linear(4, 3, bias=False).double()
    risk = EmpiricalRisk(model, lambda outputs, _: outputs.sum() / len(outputs), (X, Y))
    step = Step(3, risk, Activations(risk), Previous(), None, torch.Generator().manual_seed(1))
    found = read(HessianSpectrum(k=1, density_probes=2, density_steps=5), step)
    assert found["resolution"].value == 0
    assert not [name for name in found if name.startswith("share")]


@pytest.mark.parametrize("probes", [1, -2])
def test_a_density_without_an_error_is_refused(probes):
    with pytest.raises(ValueError, match=f"0 for no density, or at least 2: .*; got {probes}"):
        HessianSpectrum(density_probes=probes)
