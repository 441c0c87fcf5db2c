"""Condition numbers that state their tolerance, their nullity and what is only a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from normlens.curvature.density import spectral_density
from normlens.curvature.eigenpairs import Eigenpairs, Ritz, ritz
from normlens.curvature.gram import GramSpectrum
from normlens.curvature.lanczos_state import advance, begin, rounding
from normlens.curvature.magnitude_quantiles import magnitude_quantiles
from normlens.curvature.null_space import NullSpace
from normlens.curvature.operator import LinearOperator, deflate
from normlens.estimate import Estimate

__all__ = ["DENSE_ROWS", "SHARES", "TOLERANCES", "ConditionNumber", "condition_number"]

TOLERANCES = tuple(10.0**k for k in range(-12, -2))
SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
DENSE_ROWS = 3000
"""Rows up to which the whole matrix is formed: 3000 products and ten seconds of eigenvalues."""
_DENSITY_STEPS = 80  # products of one probe of the density


@dataclass(frozen=True)
class ConditionNumber:
    r"""The ratio of the largest eigenvalue to the smallest that is not zero, both in magnitude.

    .. math:: \kappa^*(\tau) = \max|\lambda| \,/\, \min\{|\lambda| : |\lambda| > \tau\max|\lambda|\}

    It depends on the tolerance and means nothing without it: :attr:`curve` has it for all of :data:`TOLERANCES`.
    :attr:`quantiles` replace the smallest eigenvalue by a quantile of the magnitudes, which can be estimated where
    the smallest one is out of reach.

    Attributes:
        value: :math:`\kappa^*`; nan where only a bound is known.
        lower: a lower bound on it, certified by residuals; equal to ``value`` where that is known.
        lambda_max: the largest eigenvalue in magnitude.
        lambda_min: the smallest magnitude above the tolerance; where only ``lower`` is known, an upper bound on it.
        nullity: eigenvalues within the tolerance of zero, deflated ones included; where only ``lower`` is known, the
            deflated ones alone; None where unknown.
        negative: eigenvalues below minus the tolerance; None where unknown.
        tolerance: :math:`\tau`, relative to ``lambda_max``.
        floor: the relative size below which an eigenvalue cannot be told from rounding in the operator's dtype.
        curve: :math:`\kappa^*` (or its lower bound) at each of :data:`TOLERANCES`; nan below the floor.
        method: "dense", "gram", "values" or "lanczos".
        converged: whether ``value`` is the number and not a bound.
        matvecs: products that were formed, those of the density included.
        quantiles: ``lambda_max`` over the q-quantile of the magnitudes, for each q of :data:`SHARES`, of all
            eigenvalues but the directions given as null. Exact up to rounding where ``converged``; else from a spectral
            density, with its error. A quantile within the tolerance (exact) or below the resolution (density) of zero
            is not answered: nan. Empty where no density was asked for.
        eigenvalues: (n,) ascending, where all are known (of a Gram matrix those it has), else None.
        vectors: (n, 1 or 2), of the Ritz values at ``lambda_max`` and ``lambda_min``, to start the next call from;
            None where it came to no Lanczos.
        residual: of ``lambda_max``: an eigenvalue lies within that distance; rounding where all are known.
    """

    value: float
    lower: float
    lambda_max: float
    lambda_min: float
    nullity: int | None
    negative: int | None
    tolerance: float
    floor: float
    curve: tuple[float, ...]
    method: str
    converged: bool
    matvecs: int
    quantiles: tuple[Estimate, ...] = ()
    eigenvalues: Tensor | None = field(default=None, repr=False, compare=False)
    vectors: Tensor | None = field(default=None, repr=False, compare=False)
    residual: float = math.nan

    def __str__(self) -> str:
        number = f"{self.value:.4g}" if self.converged else f"at least {self.lower:.4g}"
        return f"condition number {number} (tolerance {self.tolerance:g}, {self.method})"


def condition_number(
    operator: LinearOperator | GramSpectrum | Tensor,
    *,
    tolerance: float = 1e-6,
    method: Literal["auto", "dense", "lanczos"] = "auto",
    null: Tensor | NullSpace | None = None,
    steps: int = 200,
    probes: int = 4,
    start: Tensor | Eigenpairs | None = None,
    generator: torch.Generator | None = None,
) -> ConditionNumber:
    """Return the condition number of a symmetric matrix over its nonzero eigenvalues.

    Exact where all eigenvalues can be had: from the dense matrix up to 3000 rows, or from the Gram matrix of a
    Gauss-Newton or Fisher matrix (:func:`gram.gauss_newton_spectrum`). Else Lanczos: it cannot reach the smallest
    nonzero eigenvalue of a large matrix, so only a lower bound is given. A Ritz pair with value t and residual r says
    that an eigenvalue lies in [t - r, t + r]; where that interval keeps clear of zero by the tolerance, it certifies
    a bound. Beside it stand the ratios to quantiles of the magnitudes, from a spectral density.

    Args:
        operator: the matrix, its Gram spectrum, or all its eigenvalues (n,).
        tolerance: relative to the largest magnitude; what is smaller counts as zero.
        method: "auto" picks; "dense" or "lanczos" insist.
        null: (n, k) directions known to be null, taken out first, or what :func:`null_space.null_directions` found.
        steps: Lanczos steps, where it comes to that.
        probes: of the density, where it comes to that: each takes up to 80 products more; 0 for no density, and at
            least 2 for an answer, since the error is their spread.
        start: Lanczos begins with the sum of these vectors, (n,) or (n, k), and of a random one: the ``vectors`` of an
            earlier result follow a matrix that changes in fewer steps; what has overtaken them is still seen.
        generator: draws the random vectors; None for one with seed 0.

    Raises:
        ValueError: the tolerance is not in (0, 1), or below what the dtype can tell from zero; or another argument
            does not fit.
    """
    if isinstance(operator, GramSpectrum):
        spectrum = operator.values.double()
        relative = operator.floor / float(spectrum.max()) if float(spectrum.max()) > 0 else operator.floor
        _check(tolerance, relative)
        return _exact(spectrum, operator.parameters, 0, tolerance, relative, "gram", 0)
    if isinstance(operator, Tensor):
        _check_values(operator)
    floor = 8 * float(torch.finfo(operator.dtype).eps)
    _check(tolerance, floor)
    known = 0 if null is None else len(null.labels) if isinstance(null, NullSpace) else null.shape[1]
    if isinstance(operator, Tensor):
        return _exact(operator.detach().double(), len(operator), known, tolerance, floor, "values", 0)
    n = operator.shape[0]
    if method == "dense" or (method == "auto" and n <= DENSE_ROWS):
        return _exact(torch.linalg.eigvalsh(operator.dense().double()), n, known, tolerance, floor, "dense", n)
    if steps < 1 or known >= n:
        raise ValueError(
            f"Lanczos needs a step and a row that is not null; got steps={steps}, {known} null of {n} rows"
        )
    own = generator if generator is not None else torch.Generator().manual_seed(0)
    reduced = operator if null is None else _deflated(operator, null)
    found = _krylov(reduced, _first(operator, start, null, own), min(steps, n - known))
    quantiles, cost = _estimated(reduced, known, found, min(steps, _DENSITY_STEPS), probes, own)
    return _bounded(found, tolerance, floor, known or None, quantiles, cost)


def _check(tolerance: float, floor: float) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance must lie between 0 and 1; got {tolerance}")
    if tolerance < floor:
        raise ValueError(
            f"a tolerance of {tolerance:g} is below the precision floor {floor:.2g}: smaller eigenvalues cannot be "
            "told from rounding; measure in float64 (model.double()), or raise the tolerance"
        )


def _check_values(values: Tensor) -> None:
    fits = values.ndim == 1 and len(values) > 0 and values.is_floating_point() and bool(values.isfinite().all())
    if not fits:
        raise ValueError(
            f"eigenvalues must be (n,), floating-point and finite; got {values.dtype} of shape {tuple(values.shape)}: "
            "wrap a matrix in DenseOperator"
        )


def _exact(
    values: Tensor, rows: int, known: int, tolerance: float, floor: float, method: str, matvecs: int
) -> ConditionNumber:
    size = values.abs()
    top = float(size.max())
    smallest = _smallest(size, tolerance * top)
    curve = tuple(top / _smallest(size, t * top) if t >= floor else math.nan for t in TOLERANCES)
    value = top / smallest
    # Of all rows of the matrix: a Gram matrix may list fewer values than that, or zeros beyond them.
    nullity = rows - int((size > tolerance * top).sum())
    negative = int((values < -tolerance * top).sum())
    descending = size.sort(descending=True).values[: rows - known]
    quantiles = tuple(_exact_quantile(descending, rows - known, q, tolerance, floor, matvecs) for q in SHARES)
    return ConditionNumber(
        value, value, top, smallest, nullity, negative, tolerance, floor, curve, method, True, matvecs, quantiles,
        values.sort().values.cpu(), residual=floor * top,
    )  # fmt: skip


def _smallest(size: Tensor, threshold: float) -> float:
    above = size[size > threshold]
    return float(above.min()) if len(above) else math.nan


def _exact_quantile(descending: Tensor, rows: int, q: float, tolerance: float, floor: float, matvecs: int) -> Estimate:
    """Return the largest over the q-quantile of ``rows`` magnitudes, of which those that are not listed are zero."""
    place = rows - max(1, math.ceil(q * rows - 1e-9))
    if not 0 <= place < len(descending) or not float(descending[place]) > tolerance * float(descending[0]):
        return Estimate(math.nan, math.nan, matvecs, converged=False)
    ratio = float(descending[0] / descending[place])
    return Estimate(ratio, ratio * ratio * floor, matvecs, converged=True)


def _deflated(operator: LinearOperator, null: Tensor | NullSpace) -> LinearOperator:
    return null.deflate(operator) if isinstance(null, NullSpace) else deflate(operator, null)


def _first(
    operator: LinearOperator, start: Tensor | Eigenpairs | None, null: Tensor | NullSpace | None, own: torch.Generator
) -> Tensor:
    """Return a random vector, joined by those to start from, without its part along the null directions."""
    n = operator.shape[0]
    vector = torch.randn(n, generator=own, device=own.device, dtype=torch.float64).to(operator.device)
    if start is not None:
        block = start.vectors if isinstance(start, Eigenpairs) else start[:, None] if start.ndim == 1 else start
        if block.ndim != 2 or block.shape[0] != n or not bool(block.isfinite().all()) or not bool(block.any()):
            raise ValueError(
                f"start must be finite, not zero, of shape ({n},) or ({n}, k); got shape {tuple(block.shape)}"
            )
        warm = torch.nn.functional.normalize(block.to(vector), dim=0).sum(1)
        vector = vector / vector.norm() + warm
    if isinstance(null, NullSpace):
        return null.project(vector)
    if null is not None:
        basis = torch.linalg.qr(null.to(vector))[0]
        vector = vector - basis @ (basis.T @ vector)
    return vector


@dataclass(frozen=True, eq=False)
class _Krylov:
    """The Ritz pairs of a Krylov space, largest magnitude first, and its basis, (m, n)."""

    pairs: Ritz
    basis: Tensor

    def vectors(self, *indices: int) -> Tensor:
        chosen = self.pairs.vectors[:, list(dict.fromkeys(indices))].to(self.basis)
        return self.basis.T @ chosen


def _krylov(operator: LinearOperator, start: Tensor, steps: int) -> _Krylov:
    """Run plain Lanczos, fully reorthogonalized, until ``steps`` or until the space is invariant."""
    state = begin(operator, start[None], steps, seed=0)
    while len(state.basis) < steps and len(state.pending):
        state = advance(operator, state, torch.ones(1, dtype=torch.float64))
    return _Krylov(ritz(state, "LM", 0.0, rounding(operator)), state.basis)


def _estimated(
    operator: LinearOperator, known: int, found: _Krylov, steps: int, probes: int, own: torch.Generator
) -> tuple[tuple[Estimate, ...], int]:
    """Return lambda_max over the quantiles of the magnitudes from a density, and the products that it took."""
    if probes == 0:
        return (), 0
    density = spectral_density(operator, steps=steps, probes=probes, generator=own)
    n = operator.shape[0]
    top, residual = float(found.pairs.values[0].abs()), float(found.pairs.residuals[0])
    shares = [(known + q * (n - known)) / n for q in SHARES]  # the directions taken out are zeros of the operator
    return tuple(_over(top, residual, q) for q in magnitude_quantiles(density, shares)), density.cost


def _over(top: float, residual: float, quantile: Estimate) -> Estimate:
    """Return the ratio; its error is the distance to the farther end, nan where the denominator may be zero."""
    least = quantile.value - quantile.error
    if not least > 0:
        return Estimate(math.nan, math.nan, quantile.cost, converged=False)
    ratio = top / quantile.value
    return Estimate(ratio, (top + residual) / least - ratio, quantile.cost, converged=True)


def _bounded(
    found: _Krylov,
    tolerance: float,
    floor: float,
    known: int | None,
    quantiles: tuple[Estimate, ...],
    cost: int,
) -> ConditionNumber:
    sizes = found.pairs.values.abs()
    top = float(sizes[0])  # a Ritz value is never larger than the largest eigenvalue
    residuals = found.pairs.residuals + floor * top
    top_at_most = top + float(residuals[0])

    def bound(relative: float) -> float:
        """The smallest |eigenvalue| certified to lie above the threshold, from above."""
        clear = sizes - residuals > relative * top_at_most
        return float((sizes + residuals)[clear].min()) if bool(clear.any()) else math.nan

    smallest = bound(tolerance)
    nearest = int((sizes + residuals - smallest).abs().argmin()) if math.isfinite(smallest) else 0
    curve = tuple(top / bound(t) if t >= floor else math.nan for t in TOLERANCES)
    return ConditionNumber(
        math.nan, top / smallest, top, smallest, known, None, tolerance, floor, curve, "lanczos", False,
        len(sizes) + cost, quantiles, None, found.vectors(0, nearest), float(residuals[0]),
    )  # fmt: skip
