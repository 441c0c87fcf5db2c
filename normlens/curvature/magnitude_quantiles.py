"""Magnitude quantiles: how small the small eigenvalues are, from a spectral density, with what it cannot resolve."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from normlens.curvature.density import SpectralDensity
from normlens.estimate import Estimate

__all__ = ["magnitude_quantiles"]

_POINTS = 300  # of the logarithmic grid: 5 % apart over six decades, below the errors that it is searched within


def magnitude_quantiles(density: SpectralDensity, shares: Iterable[float]) -> tuple[Estimate, ...]:
    r"""Return the magnitudes below which given shares of the eigenvalues lie.

    .. math:: x_q = \min\{x : F(x) \ge q\}, \qquad F(x) = \mathrm{share}\{|\lambda| \le x\}

    F is :meth:`SpectralDensity.fraction` of (-x, x] with its error e (spread over the probes and bounds of the
    quadrature). The quantile lies between the last x with F + e < q and the first one with F - e >= q; the error is
    the distance to the farther of them. Where even at the resolution of the density F + e is not below q, the
    quantile cannot be told from zero: nan, ``converged`` False. One probe has no spread, so it answers nothing.

    Args:
        density: of the matrix.
        shares: q, each in (0, 1).

    Raises:
        ValueError: a share is not in (0, 1).
    """
    wanted = tuple(shares)
    if not all(0 < q < 1 for q in wanted):
        raise ValueError(f"shares must lie between 0 and 1; got {wanted}")
    table = _distribution(density)
    return tuple(_quantile(table, q, density.cost) for q in wanted)


def _distribution(density: SpectralDensity) -> list[tuple[float, Estimate]]:
    """Return F on a logarithmic grid from the resolution to the largest magnitude, where it is answered."""
    largest = float(density.ritz.abs().max()) * (1 + 1e-9)
    if not 0 < density.resolution < largest:
        return []
    ends = math.log10(density.resolution * (1 + 1e-9)), math.log10(largest)
    grid = torch.logspace(*ends, _POINTS, dtype=torch.float64).tolist()
    answered = [(x, density.fraction(-x, x)) for x in grid]
    return [(x, share) for x, share in answered if math.isfinite(share.value) and math.isfinite(share.error)]


def _quantile(table: list[tuple[float, Estimate]], q: float, cost: float) -> Estimate:
    below = [x for x, share in table if share.value + share.error < q]
    reached = [x for x, share in table if share.value >= q]
    if not below or not reached:
        return Estimate(math.nan, math.nan, cost, converged=False)
    least = max(below)
    most = min((x for x, share in table if share.value - share.error >= q), default=table[-1][0])
    before = [x for x, _ in table if x < min(reached)]
    value = math.sqrt(min(reached) * (before[-1] if before else least))  # it lies between these two grid points
    return Estimate(value, max(most - value, value - least), cost, converged=True)
