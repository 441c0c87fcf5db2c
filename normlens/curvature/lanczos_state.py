r"""LanczosState: a basis, the matrix projected onto it, and the directions in which A leads out of it.

All that Lanczos does keeps one decomposition exact from step to step (cf. Wu & Simon 2000; Stewart 2001):

.. math:: A Q = Q T + U C^\top, \qquad Q^\top Q = I,\; U^\top U = I,\; Q^\top U = 0.

Plain Lanczos is the case of one pending direction and :math:`C = \beta_m e_m`. A thick restart rotates Q, T and C; a
start from several vectors has several pending directions; an invariant subspace has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normlens.curvature.operator import LinearOperator

__all__ = ["LanczosState", "advance", "begin", "fresh", "restart", "rounding"]

EXPLORED = 3  # products after a fresh random direction's own: with 2, one overtaking in a hundred went unseen


@dataclass(frozen=True, eq=False)
class LanczosState:
    """Where a Lanczos recurrence stands; it is all that is needed to go on, and holds plain tensors only.

    Attributes:
        basis: Q, transposed: (m, n) float64, orthonormal rows, a view of ``rows``.
        rows: (capacity, n) memory for the basis.
        projected: T, (m, m).
        pending: U, transposed: (p, n), orthonormal rows, orthogonal to the basis.
        coupling: C, (m, p).
        settled: the wanted values when the subspace was last found invariant.
        queued: how many pending directions are start vectors still to be taken, in order.
        explore: how many steps of the youngest direction are still to be taken.
        matvecs: products formed so far.
        seed: of the random directions; direction j is drawn with ``seed + j``.
        draws: how many have been drawn.
        scale: the largest norm of a product with a unit vector so far, a lower bound of the norm of A.
        noise: the largest asymmetry that the products have shown, as the norm of a column: their rounding, measured.
    """

    basis: Tensor
    rows: Tensor
    projected: Tensor
    pending: Tensor
    coupling: Tensor
    settled: Tensor
    queued: int
    explore: int
    matvecs: int
    seed: int
    draws: int
    scale: float
    noise: float

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the state as NumPy arrays by name, for ``numpy.savez``."""
        names = [field.name for field in fields(self) if field.name != "rows"]
        values = {name: getattr(self, name) for name in names}
        return {name: v.cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for name, v in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> LanczosState:
        """Return the state that :meth:`to_arrays` wrote.

        Raises:
            ValueError: arrays are missing.
        """
        names = {field.name: str(field.type) for field in fields(cls) if field.name != "rows"}
        if missing := sorted(set(names) - set(arrays)):
            raise ValueError(f"a Lanczos state needs the arrays of to_arrays(); missing {missing}; save all of them")
        kinds: dict[str, Callable[[Any], Any]] = {"Tensor": _tensor, "int": int, "float": float}
        values = {name: kinds[kind](arrays[name]) for name, kind in names.items()}
        return cls(rows=values["basis"], **values)

    def with_capacity(self, capacity: int, device: torch.device) -> LanczosState:
        """Return the same state with its own memory for ``capacity`` vectors, so that two runs may go on from it."""
        rows = torch.empty(max(capacity, len(self.basis)), self.basis.shape[1], dtype=torch.float64, device=device)
        rows[: len(self.basis)] = self.basis
        return replace(self, rows=rows, basis=rows[: len(self.basis)], pending=self.pending.to(device))


def rounding(operator: LinearOperator) -> float:
    """Return the relative error that a product may have: the rounding of its dtype, or what its method is known to."""
    return max(4 * float(torch.finfo(operator.dtype).eps), operator.error)


def begin(operator: LinearOperator, starts: Tensor, capacity: int, seed: int) -> LanczosState:
    """Return the state before the first product: the span of the rows of ``starts``, (s, n), is pending.

    Dependent rows are left out. With no rows at all it starts from one random direction.
    """
    n, device = operator.shape[0], operator.device
    empty = torch.zeros(0, n, dtype=torch.float64, device=device)
    pending = empty
    for row in starts.to(empty):
        new, size = _orthogonalize(row / row.norm(), pending)
        if size > 1e-8:
            pending = torch.cat([pending, new[None] / size])
    rows = torch.empty(capacity, n, dtype=torch.float64, device=device)
    small = torch.zeros(0, 0, dtype=torch.float64)
    state = LanczosState(
        rows[:0], rows, small, pending, small.new_zeros(0, len(pending)), small[:, 0:0].reshape(-1),
        queued=len(pending), explore=0, matvecs=0, seed=seed, draws=0, scale=0.0, noise=0.0,
    )  # fmt: skip
    return state if len(pending) else replace(fresh(state), explore=0)


def fresh(state: LanczosState) -> LanczosState:
    """Return the state with one more pending direction, random, which the matrix does not couple to the basis yet."""
    n, device = state.rows.shape[1], state.rows.device
    if len(state.basis) + len(state.pending) >= n:
        return state
    generator = torch.Generator().manual_seed(state.seed + state.draws)
    row = torch.randn(n, dtype=torch.float64, generator=generator).to(device)
    row, _ = _orthogonalize(row, torch.cat([state.basis, state.pending]))
    pending = torch.cat([state.pending, row[None] / row.norm()])
    coupling = torch.cat([state.coupling, state.coupling.new_zeros(len(state.basis), 1)], 1)
    return replace(
        state, pending=pending, coupling=coupling, queued=state.queued + 1, draws=state.draws + 1, explore=EXPLORED
    )


def advance(operator: LinearOperator, state: LanczosState, direction: Tensor) -> LanczosState:
    """Return the state after one more product: with ``direction`` (p,), of norm 1, in coordinates of the pending rows.

    Raises:
        FloatingPointError: the product is not finite.
    """
    vector, size = _orthogonalize(direction.to(state.pending) @ state.pending, state.basis)
    vector = vector / size
    product = operator @ vector
    if not bool(product.isfinite().all()):
        bad = int((~product.isfinite()).sum())
        raise FloatingPointError(
            f"a matrix-vector product must be finite; {bad} of {len(product)} entries of product {state.matvecs + 1} "
            f"are not: check that loss and parameters are finite, or form the products in float64"
        )
    return _absorb(state, direction, vector, product, rounding(operator))


def _absorb(state: LanczosState, direction: Tensor, vector: Tensor, product: Tensor, floor: float) -> LanczosState:
    """Extend A Q = Q T + U C' by the column A q = Q h + U g + beta u."""
    m, n = len(state.basis), state.rows.shape[1]
    mirror = _reflection(direction)
    pending = (mirror.to(state.pending) @ state.pending)[1:]
    coupling = state.coupling @ mirror
    state.rows[m] = vector  # beyond the old state's view: it stays what it was, should the caller be interrupted
    basis = state.rows[: m + 1]
    scale = max(state.scale, float(product.norm()))
    along = basis @ product
    out = product - basis.T @ along
    beside = pending @ out
    out = out - pending.T @ beside
    for rows in (basis, pending):  # the second pass
        out = out - rows.T @ (rows @ out)
    beta = float(out.norm())
    side = torch.cat([coupling[:, 1:], beside.cpu()[None]])
    if beta > floor * scale and m + 1 + len(pending) < n:
        pending = torch.cat([pending, out[None] / beta])
        last = side.new_zeros(m + 1, 1)
        last[m] = beta
        side = torch.cat([side, last], 1)
    return replace(
        state, basis=basis, projected=_bordered(state.projected, coupling[:, 0], float(along[m])), pending=pending,
        coupling=side, matvecs=state.matvecs + 1, scale=scale,
        noise=max(state.noise, float((along[:m].cpu() - coupling[:, 0]).norm())), queued=max(state.queued - 1, 0),
        explore=state.explore if state.queued else max(state.explore - 1, 0),
    )  # fmt: skip


def restart(state: LanczosState, vectors: Tensor, values: Tensor) -> LanczosState:
    """Return the state on the span of the Ritz vectors Q S: the decomposition still holds, with T diagonal.

    Args:
        state: before.
        vectors: S, (m, l), eigenvectors of T.
        values: (l,), their eigenvalues.
    """
    rows = torch.empty_like(state.rows)
    kept = vectors.shape[1]
    torch.mm(vectors.T.to(state.basis), state.basis, out=rows[:kept])
    return replace(
        state, rows=rows, basis=rows[:kept], projected=torch.diag(values), coupling=vectors.T @ state.coupling
    )


def _orthogonalize(vector: Tensor, rows: Tensor) -> tuple[Tensor, float]:
    """Take the rows' span out, in two passes: twice is enough (Kahan and Parlett; Parlett 1980, §6.9)."""
    for _ in range(2):
        vector = vector - rows.T @ (rows @ vector)
    return vector, float(vector.norm())


def _reflection(direction: Tensor) -> Tensor:
    """Return the symmetric orthogonal matrix with ``direction``, of norm 1, as its first column (Householder)."""
    identity = torch.eye(len(direction), dtype=torch.float64)
    normal = direction - identity[0]
    squared = float(normal @ normal)
    return identity - 2 / squared * torch.outer(normal, normal) if squared > 0 else identity


def _tensor(array: object) -> Tensor:
    return torch.from_numpy(np.array(array))


def _bordered(matrix: Tensor, column: Tensor, corner: float) -> Tensor:
    m = len(matrix)
    larger = matrix.new_zeros(m + 1, m + 1)
    larger[:m, :m], larger[:m, m], larger[m, :m], larger[m, m] = matrix, column, column, corner
    return larger
