"""eigsh: the outermost eigenpairs of a symmetric matrix, by fully reorthogonalized, restarted Lanczos."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from normlens.curvature.eigenpairs import Eigenpairs, Ritz, Which, eigenpairs, ritz
from normlens.curvature.lanczos_state import LanczosState, advance, begin, fresh, restart, rounding
from normlens.curvature.operator import LinearOperator

__all__ = ["eigsh"]

MOST_VECTORS = 200  # beyond this the small eigenproblem of every step begins to cost
MOST_BYTES = 2**31  # of the default basis


def eigsh(
    A: LinearOperator,
    k: int = 5,
    which: Which = "LA",
    *,
    tol: float = 1e-3,
    start: Tensor | Eigenpairs | None = None,
    nearby: bool | None = None,
    max_matvecs: int | None = None,
    basis: int | None = None,
    state: LanczosState | None = None,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    r"""Return the k outermost eigenpairs of a symmetric matrix, from as few products as possible.

    The Ritz pairs :math:`(\theta_i, v_i)` of :math:`\mathrm{span}(q, Aq, A^2q, \dots)` are tested after every product:
    pair i has converged when :math:`\lVert A v_i - \theta_i v_i \rVert = |\beta_m s_{mi}| \le \mathrm{tol} \cdot \max_j
    |\theta_j|`. So ``tol`` bounds the residual relative to the largest eigenvalue in magnitude; the relative error of
    an isolated value is of the order of its square. A full basis is restarted with its most wanted Ritz vectors
    (thick restart).

    Args:
        A: the matrix, n x n. The recurrence is in float64; what a product in float32 can resolve is measured, by
            how far the products are from symmetric, to its order of magnitude: no residual below that, or below
            :math:`4 \epsilon = 5 \cdot 10^{-7}` of the largest eigenvalue, is claimed, and a smaller ``tol`` is raised
            to it.
        k: how many pairs; all n where n is less.
        which: ``"LA"`` the largest, ``"SA"`` the smallest, ``"LM"`` the largest in magnitude, ``"BE"`` half from each
            end (one more from the high end).
        tol: relative residual.
        start: a vector (n,), a block (n, p), or the result for a matrix close by.
        nearby: whether ``start`` holds the eigenvectors of a matrix close by: a warm start from all of them and one
            fresh random direction, which four products go to before the old pairs are believed: from the old vectors
            alone an eigenvalue that has overtaken them is never seen. None: if it is an earlier result.
        max_matvecs: products of this call at most; 10 n by default. What has not converged by then is marked so.
        basis: how many vectors of length n to keep; by default up to 200, or as many as fit
            2 GiB, but 2 k + 20 at least. A restart takes the same once more for a moment.
        state: of an earlier result for the same matrix: goes on from there and repeats no product.
        progress: whether to show a bar on stderr.
        generator: for the random directions; by default a fresh one with seed 0.

    Returns:
        The pairs. After Ctrl-C, and where ``max_matvecs`` is less than k, those that there are: maybe fewer than k.

    Raises:
        ValueError: an argument does not fit.
        FloatingPointError: a product is not finite.

    Valid for symmetric A. A Krylov space holds one vector of each eigenspace: a multiple eigenvalue is listed once,
    unless the subspace closes (few distinct eigenvalues; then fresh directions are taken until they bring nothing new)
    or ``start`` is a block of as many columns as the multiplicity, e.g. random ones.

    Source: Parlett, The Symmetric Eigenvalue Problem (1980), ch. 11-13; Wu & Simon, SIAM J. Matrix Anal. Appl. 22
    (2000) 602-616.
    """
    n = A.shape[0]
    _check(n, k, which, tol, max_matvecs, basis)
    k = min(k, n)
    capacity = min(n, basis or max(2 * k + 20, min(MOST_VECTORS, MOST_BYTES // (8 * n))))
    warm = isinstance(start, Eigenpairs) if nearby is None else nearby and start is not None
    vectors = start.vectors if isinstance(start, Eigenpairs) else start
    now = _initial(A, vectors, warm, state, capacity, generator)
    limit = now.matvecs + (10 * n if max_matvecs is None else max_matvecs)
    search = _Search(A, k, which, tol, capacity, now)
    try:
        with tqdm(total=limit - now.matvecs, unit=" products", disable=not progress) as bar:
            while search.state.matvecs < limit and not search.done():
                search.step()
                bar.update()
    except KeyboardInterrupt:
        if len(search.state.basis) == 0:
            raise
        _warn(search.result())
    return search.result()


class _Search:
    """One call's recurrence: its settings, and the state, which a step replaces as a whole once it is complete."""

    def __init__(
        self, operator: LinearOperator, k: int, which: Which, tol: float, capacity: int, state: LanczosState
    ) -> None:
        self.operator, self.k, self.which, self.tol, self.capacity = operator, k, which, tol, capacity
        self.floor = rounding(operator)
        self.state = state
        self.found = self._ritz(state)

    def step(self) -> None:
        """Form one product; restart before it when the basis is full."""
        state, found = self.state, self.found
        if len(state.basis) >= self.capacity:
            kept = slice(0, self.k + (self.capacity - self.k) // 3)
            state = restart(state, found.vectors[:, kept], found.values[kept])
            found = self._ritz(state)
        state = advance(self.operator, state, self._direction(state, found))
        self.state, self.found = state, self._ritz(state)

    def done(self) -> bool:
        """Tell whether the wanted pairs are there; leave an invariant subspace while that brings new ones."""
        m, n = len(self.state.basis), self.operator.shape[0]
        if m == n:
            return True
        if len(self.state.pending) == 0:
            return self._settled()
        complete = m >= self.k and bool(self.found.converged[: self.k].all())
        return complete and self.state.queued == 0 and self.state.explore == 0

    def result(self) -> Eigenpairs:
        return eigenpairs(self.state, self.found, self.k, self.which, self.floor)

    def _ritz(self, state: LanczosState) -> Ritz:
        return ritz(state, self.which, self.tol, self.floor)

    def _settled(self) -> bool:
        """In an invariant subspace every pair is exact, but a multiple eigenvalue may have more vectors outside."""
        wanted, before = self.found.values[: self.k], self.state.settled
        same = len(wanted) == len(before) == self.k
        if same and bool((wanted - before).abs().max() <= max(self.tol, self.floor) * self.found.scale):
            return True
        self.state = replace(fresh(self.state), settled=wanted.clone())
        return False

    def _direction(self, state: LanczosState, found: Ritz) -> Tensor:
        """Start vectors first, then the fresh one's own Krylov space, then the residual of the first open pair."""
        unit = torch.eye(len(state.pending), dtype=torch.float64)
        if state.queued:
            return unit[0]
        open_pairs = (~found.converged[: self.k]).nonzero()
        if state.explore or len(open_pairs) == 0:
            return unit[-1]
        residual = state.coupling.T @ found.vectors[:, int(open_pairs[0])]
        return torch.div(residual, residual.norm())


def _initial(
    operator: LinearOperator,
    start: Tensor | None,
    warm: bool,
    state: LanczosState | None,
    capacity: int,
    generator: torch.Generator | None,
) -> LanczosState:
    n = operator.shape[0]
    if state is not None:
        if start is not None:
            raise ValueError("eigsh needs start= or state=; got both; state= goes on with the same matrix")
        if state.basis.shape[1] != n:
            raise ValueError(f"the state must be of a matrix with {n} rows; got {state.basis.shape[1]}; start anew")
        return state.with_capacity(capacity, operator.device)
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    if start is None:
        return begin(operator, torch.zeros(0, n), capacity, seed)
    rows = _columns(start, n)
    if warm:
        return fresh(begin(operator, rows[: max(capacity - 2, 1)], capacity, seed))
    return begin(operator, rows, capacity, seed)


def _columns(start: Tensor, n: int) -> Tensor:
    block = start[:, None] if start.ndim == 1 else start
    fits = block.ndim == 2 and block.shape[0] == n and bool(block.isfinite().all()) and bool(block.norm(dim=0).all())
    if not fits:
        raise ValueError(
            f"start must be finite, not zero, of shape ({n},) or ({n}, p); got shape {tuple(start.shape)}; "
            f"leave it out for a random one"
        )
    return block.T


def _check(n: int, k: int, which: Which, tol: float, max_matvecs: int | None, basis: int | None) -> None:
    if n < 1 or k < 1:
        raise ValueError(f"eigsh needs a matrix with rows and k >= 1; got n={n}, k={k}")
    if which not in get_args(Which):
        raise ValueError(f"which must be one of {', '.join(get_args(Which))}; got {which!r}")
    if not tol >= 0:
        raise ValueError(f"tol must be 0 or more; got {tol}; 1e-3 gives isolated values to about 1e-6")
    if max_matvecs is not None and max_matvecs < 1:
        raise ValueError(f"max_matvecs must be 1 or more; got {max_matvecs}; None means 10 n")
    if basis is not None and basis < min(n, k + 2):
        raise ValueError(f"basis must hold at least k + 2 = {k + 2} vectors; got {basis}; None chooses it")


def _warn(pairs: Eigenpairs) -> None:
    warnings.warn(
        f"interrupted after {pairs.matvecs} products: {int(pairs.converged.sum())} of {len(pairs.values)} pairs have "
        f"converged; eigsh(A, state=result.state) goes on from here",
        RuntimeWarning,
        stacklevel=3,
    )
