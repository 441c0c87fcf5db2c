"""A probe that follows a matrix: it starts from the last eigenvectors, and is not trapped by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normlens as nl
from normlens.curvature.lanczos import eigsh
from normlens.curvature.operator import DenseOperator
from normlens.probes.edge_of_stability import EdgeOfStability
from normlens.probes.warm_start import vectors_reading, warm_start
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading


def diagonal(values: list[float], n: int = 200) -> DenseOperator:
    bulk = torch.linspace(0, 0.5, n - len(values), dtype=torch.float64)
    return DenseOperator(torch.diag(torch.cat([torch.tensor(values, dtype=torch.float64), bulk])))


def previous(operator: DenseOperator) -> Previous:
    reading = vectors_reading(eigsh(operator, 1, tol=1e-8).vectors)
    return Previous(last={("", reading.name): reading})


def test_the_vectors_come_back_to_the_precision_of_float32_and_are_not_stored() -> None:
    pairs = eigsh(diagonal([3.0, 2.0]), 2, tol=1e-10)
    reading = vectors_reading(pairs.vectors)
    start = warm_start(Previous(last={("", reading.name): reading}), 200)
    assert start is not None
    assert not reading.stored
    torch.testing.assert_close(start, pairs.vectors, atol=float(np.finfo(np.float32).eps), rtol=0)


def test_vectors_of_another_matrix_are_left_alone() -> None:
    assert warm_start(previous(diagonal([3.0])), 199) is None
    assert warm_start(Previous(), 200) is None


def test_an_eigenvalue_that_has_overtaken_is_found_from_the_old_vector() -> None:
    start = warm_start(previous(diagonal([3.0, 2.0])), 200)
    moved = diagonal([3.0, 4.0])  # the old vector is still an eigenvector, of the second largest value
    for seed in range(20):
        found = eigsh(moved, 1, tol=1e-3, start=start, nearby=True, generator=torch.Generator().manual_seed(seed))
        assert float(found.values[0]) == pytest.approx(4.0, rel=1e-5)
    trapped = eigsh(moved, 1, tol=1e-3, start=start, nearby=False)
    assert float(trapped.values[0]) == pytest.approx(3.0, rel=1e-5)


class Quadratic(nn.Module):
    """Its Hessian over theta is the given matrix, whatever the batch."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix
        self.theta = nn.Parameter(torch.ones(len(matrix), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.theta @ self.matrix @ self.theta / 2).expand(len(x))


def measure(model: nn.Module, last: dict[tuple[str, str], Reading]) -> dict[tuple[str, str], Reading]:
    risk = EmpiricalRisk(model, lambda outputs, targets: outputs.mean(), (torch.ones(4, 1), torch.ones(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(1, risk, Activations(risk), Previous(last, last), optimizer, torch.Generator().manual_seed(0))
    return {("", reading.name): reading for reading in EdgeOfStability()(step)}


def test_following_the_sharpness_costs_fewer_products_than_finding_it() -> None:
    cold = measure(Quadratic(diagonal([1.0, 0.9]).dense()), {})
    warm = measure(Quadratic(diagonal([1.01, 0.9]).dense()), cold)
    assert warm["", "sharpness"].value == pytest.approx(1.01, rel=1e-5)
    assert warm["", "matvecs"].value <= 5 < cold["", "matvecs"].value


def test_a_lens_hands_the_vectors_from_one_measurement_to_the_next(tmp_path: object) -> None:
    model = Quadratic(diagonal([1.0, 0.9]).dense())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (torch.ones(4, 1), torch.ones(4))
    probes = [EdgeOfStability()]
    with nl.Lens(
        model, lambda outputs, targets: outputs.mean(), data, probes=probes, out=f"{tmp_path}/r", every=1,
        optimizer=optimizer,
    ) as lens:  # fmt: skip
        for _ in range(3):
            lens.step()
    frame = lens.run.frame("edge_of_stability")
    products = frame[frame["name"] == "matvecs"]["value"].tolist()
    assert all(count <= 5 < products[0] for count in products[1:])
    assert "vectors" not in set(frame["name"])
