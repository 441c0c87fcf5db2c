"""Eigenpairs: eigenvalues and vectors, each with its residual, its error bound and whether it converged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from normlens.curvature.lanczos_state import LanczosState

__all__ = ["Eigenpairs", "Ritz", "Which", "eigenpairs", "ritz"]

Which: TypeAlias = Literal["LA", "SA", "LM", "BE"]
"""The largest, the smallest, the largest in magnitude, or from both ends."""


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    r"""Approximate eigenpairs of a symmetric matrix.

    Attributes:
        values: (k,) :math:`\theta_i`, outermost first: descending for ``"LA"`` and ``"BE"``, ascending for ``"SA"``,
            descending in magnitude for ``"LM"``.
        vectors: (n, k) float64, orthonormal columns.
        residuals: (k,) :math:`\rho_i = \lVert A v_i - \theta_i v_i \rVert`; some eigenvalue lies within
            :math:`\rho_i` of :math:`\theta_i`. No smaller than the rounding of the products, known to its
            order of magnitude from their asymmetry; 4 eps of the largest value at least.
        error_bounds: (k,) :math:`\min(\rho_i, \rho_i^2 / \mathrm{gap}_i)` (Parlett 1980, §11.7), the gap estimated from
            the other Ritz values and their residuals; :math:`\rho_i` where they do not separate the value.
        matvecs: products formed, those of a resumed state included.
        converged: (k,) whether :math:`\rho_i \le \mathrm{tol} \cdot \max_j |\theta_j|`, or has reached
            the rounding of the products.
        state: to go on from.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    error_bounds: Tensor
    matvecs: int
    converged: Tensor
    state: LanczosState


@dataclass(frozen=True, eq=False)
class Ritz:
    """The Ritz pairs of a basis, the wanted ones first.

    Attributes:
        values: (m,).
        vectors: (m, m), in coordinates of the basis.
        residuals: (m,).
        scale: the largest magnitude among the values.
        converged: (m,) bool.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    scale: float
    converged: Tensor


def ritz(state: LanczosState, which: Which, tol: float, floor: float) -> Ritz:
    r"""Return the Ritz pairs; the residual is :math:`\lVert C^\top s_i \rVert`, for plain Lanczos |beta_m s_mi|.

    Args:
        state: the decomposition.
        which: what to sort by.
        tol: a pair has converged when its residual is at most ``tol`` of the scale, or as small as rounding lets it be.
        floor: the relative rounding of a product.
    """
    values, vectors = torch.linalg.eigh(state.projected)
    order = _by_want(values, which)
    values, vectors = values[order], vectors[:, order]
    scale = float(values.abs().max()) if len(values) else 0.0
    least = max(floor * scale, state.noise)
    residuals = (state.coupling.T @ vectors).norm(dim=0).clamp(min=least)
    return Ritz(values, vectors, residuals, scale, residuals <= max(tol * scale, least))


def eigenpairs(state: LanczosState, found: Ritz, k: int, which: Which, floor: float) -> Eigenpairs:
    """Return the first k Ritz pairs as vectors of the whole space, in the order that ``which`` promises."""
    wanted = torch.arange(min(k, len(found.values)))
    if which == "BE":
        wanted = wanted[found.values[wanted].argsort(descending=True)]
    chosen = found.vectors[:, wanted].to(state.basis)
    return Eigenpairs(
        values=found.values[wanted],
        vectors=state.basis.T @ chosen,
        residuals=found.residuals[wanted],
        error_bounds=_error_bounds(found, floor)[wanted],
        matvecs=state.matvecs,
        converged=found.converged[wanted],
        state=state,
    )


def _by_want(values: Tensor, which: Which) -> Tensor:
    """Return the indices of ascending ``values`` from the most to the least wanted."""
    up = torch.arange(len(values))
    if which == "SA":
        return up
    if which == "LA":
        return up.flip(0)
    if which == "LM":
        return values.abs().argsort(descending=True, stable=True)
    return torch.stack([up.flip(0), up], 1).reshape(-1)[: len(values)]


def _error_bounds(found: Ritz, floor: float) -> Tensor:
    """The gap to each other Ritz value is taken from the near end of the interval its own eigenvalue lies in."""
    gaps = (found.values[:, None] - found.values).abs() - found.residuals
    gaps.fill_diagonal_(torch.inf)
    gap = gaps.min(1).values
    separated = (gap > found.residuals) & (len(found.values) > 1)
    bounds = torch.where(separated, found.residuals * (found.residuals / gap), found.residuals)
    return torch.minimum(bounds, found.residuals).clamp(min=floor * found.scale)
