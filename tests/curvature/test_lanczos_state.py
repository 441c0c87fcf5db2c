from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.curvature.lanczos import eigsh
from normlens.curvature.lanczos_state import LanczosState, advance, begin, fresh, restart
from normlens.curvature.operator import DenseOperator

EPS = torch.finfo(torch.float64).eps
DECAYING = torch.diag(0.9 ** torch.arange(120, dtype=torch.float64))


class Counting(DenseOperator):
    """Counts its products; the one numbered ``stop`` is interrupted."""

    def __init__(self, matrix: Tensor, stop: int = -1) -> None:
        super().__init__(matrix)
        self.count, self.stop = 0, stop

    def matvec(self, v: Tensor) -> Tensor:
        if self.count == self.stop:
            raise KeyboardInterrupt
        self.count += 1
        return super().matvec(v)


def symmetric(n: int, seed: int = 0) -> Tensor:
    matrix = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (matrix + matrix.T) / 2


def assert_decomposes(matrix: Tensor, state: LanczosState) -> None:
    """A Q = Q T + U C', with [Q U] orthonormal."""
    right = state.basis.T @ state.projected + state.pending.T @ state.coupling.T
    torch.testing.assert_close(matrix @ state.basis.T, right, rtol=0, atol=1e3 * EPS)
    both = torch.cat([state.basis, state.pending])
    torch.testing.assert_close(both @ both.T, torch.eye(len(both), dtype=torch.float64), rtol=0, atol=1e2 * EPS)


@pytest.mark.parametrize("starts", [0, 1, 3])
def test_the_decomposition_holds_after_every_step_restart_and_fresh_direction(starts: int) -> None:
    matrix = symmetric(30)
    operator = DenseOperator(matrix)
    state = begin(operator, symmetric(30, seed=1)[:starts], 30, seed=7)
    for step in range(24):
        direction = torch.ones(len(state.pending), dtype=torch.float64)
        state = advance(operator, state, direction / direction.norm())
        assert_decomposes(matrix, state)
        if step == 9:
            values, vectors = torch.linalg.eigh(state.projected)
            state = restart(state, vectors[:, 4:], values[4:])
            assert_decomposes(matrix, state)
        if step == 14:
            state = fresh(state)
            assert_decomposes(matrix, state)
    assert len(state.basis) == 20
    assert state.matvecs == 24


def test_one_step_from_a_nearly_invariant_vector_leads_out_at_a_right_angle() -> None:
    matrix = symmetric(30)
    start = torch.linalg.eigh(matrix)[1][:, -1] + 1e-9 * symmetric(30, seed=1)[0]
    state = begin(DenseOperator(matrix), start[None], 30, seed=0)
    state = advance(DenseOperator(matrix), state, torch.ones(1, dtype=torch.float64))
    assert 0 < state.coupling.abs().max() < 1e-7
    assert_decomposes(matrix, state)


def test_plain_lanczos_projects_onto_a_tridiagonal_matrix() -> None:
    operator = DenseOperator(symmetric(20))
    state = begin(operator, torch.zeros(0, 20), 20, seed=0)
    for _ in range(10):
        state = advance(operator, state, torch.ones(1, dtype=torch.float64))
    assert torch.equal(state.projected, state.projected.triu(-1).tril(1))
    assert torch.equal(state.coupling[:-1], torch.zeros(9, 1, dtype=torch.float64))


def test_dependent_start_vectors_are_left_out() -> None:
    rows = symmetric(10)[:2]
    assert len(begin(DenseOperator(symmetric(10)), torch.cat([rows, 3 * rows]), 10, seed=0).pending) == 2


def test_a_step_leaves_the_state_before_it_as_it_was() -> None:
    matrix = symmetric(12)
    state = begin(DenseOperator(matrix), torch.zeros(0, 12), 12, seed=0)
    for _ in range(4):
        state = advance(DenseOperator(matrix), state, torch.ones(1, dtype=torch.float64))
    before = state.to_arrays()
    copies = {name: array.copy() for name, array in before.items()}
    advance(DenseOperator(matrix), state, torch.ones(1, dtype=torch.float64))
    for name, array in state.to_arrays().items():
        np.testing.assert_array_equal(array, copies[name])


def test_arrays_saved_without_pickle_go_on_like_the_state(tmp_path: Path) -> None:
    operator = DenseOperator(symmetric(60))
    part = eigsh(operator, 3, tol=1e-8, basis=12, max_matvecs=17)
    np.savez(tmp_path / "state.npz", **part.state.to_arrays())  # type: ignore[arg-type]
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        state = LanczosState.from_arrays(arrays)
    whole, rest = eigsh(operator, 3, tol=1e-8, basis=12), eigsh(operator, 3, tol=1e-8, basis=12, state=state)
    assert torch.equal(rest.vectors, whole.vectors)
    assert rest.matvecs == whole.matvecs


def test_missing_arrays_are_named() -> None:
    arrays = eigsh(DenseOperator(symmetric(5)), 1).state.to_arrays()
    del arrays["basis"], arrays["seed"]
    with pytest.raises(ValueError, match=r"needs the arrays of to_arrays\(\); missing \['basis', 'seed'\]; save all"):
        LanczosState.from_arrays(arrays)


def test_going_on_from_a_state_is_the_uninterrupted_run_and_repeats_no_product() -> None:
    matrix = DECAYING
    whole = eigsh(DenseOperator(matrix), 5, tol=1e-8, basis=18)
    first, second = Counting(matrix), Counting(matrix)
    part = eigsh(first, 5, tol=1e-8, basis=18, max_matvecs=11)
    rest = eigsh(second, 5, tol=1e-8, basis=18, state=part.state)
    again = eigsh(DenseOperator(matrix), 5, tol=1e-8, basis=18, state=part.state)
    assert first.count == part.matvecs == 11
    assert not part.converged.all()
    assert first.count + second.count == rest.matvecs == whole.matvecs
    for result in (rest, again):  # the first continuation has not written into the state
        assert torch.equal(result.values, whole.values)
        assert torch.equal(result.vectors, whole.vectors)


def test_a_converged_state_costs_no_product_to_read_again() -> None:
    operator = Counting(DECAYING)
    pairs = eigsh(operator, 3)
    assert torch.equal(eigsh(Counting(operator.dense(), stop=0), 3, state=pairs.state).values, pairs.values)


def test_ctrl_c_returns_what_converged_and_its_state_goes_on() -> None:
    matrix = DECAYING
    whole = eigsh(DenseOperator(matrix), 5, tol=1e-6, basis=14)
    with pytest.warns(RuntimeWarning, match=rf"interrupted after {whole.matvecs - 2} products: \d of 5 pairs .*state="):
        part = eigsh(Counting(matrix, stop=whole.matvecs - 2), 5, tol=1e-6, basis=14)
    left = (matrix @ part.vectors - part.vectors * part.values).norm(dim=0)
    assert torch.equal(part.converged, left <= 1e-6 * part.values[0])
    assert part.converged.any()
    assert not part.converged.all()
    rest = Counting(matrix)
    assert torch.equal(eigsh(rest, 5, tol=1e-6, basis=14, state=part.state).values, whole.values)
    assert rest.count == 2


def test_ctrl_c_at_a_restart_leaves_pairs_and_state_in_step() -> None:
    matrix = DECAYING
    with pytest.warns(RuntimeWarning, match="interrupted after 8 products"):
        part = eigsh(Counting(matrix, stop=8), 2, tol=1e-10, basis=8)
    left = (matrix @ part.vectors - part.vectors * part.values).norm(dim=0)
    torch.testing.assert_close(part.residuals, left, rtol=1e-6, atol=1e2 * EPS)


def test_ctrl_c_before_the_first_product_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt):
        eigsh(Counting(torch.eye(5), stop=0))
