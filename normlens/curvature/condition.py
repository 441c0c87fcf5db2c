"""Condition numbers that state their tolerance, their nullity and what is only a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from normlens.curvature.gram import GramSpectrum
from normlens.curvature.operator import LinearOperator, deflate
from normlens.curvature.tridiagonal import tridiagonalize

__all__ = ["TOLERANCES", "ConditionNumber", "condition_number"]

TOLERANCES = tuple(10.0**k for k in range(-12, -2))
_DENSE = 3000
"""Rows up to which the whole matrix is formed: 3000 products and ten seconds of eigenvalues."""


@dataclass(frozen=True)
class ConditionNumber:
    r"""The ratio of the largest eigenvalue to the smallest that is not zero, both in magnitude.

    .. math:: \kappa^*(\tau) = \max|\lambda| \,/\, \min\{|\lambda| : |\lambda| > \tau\max|\lambda|\}

    It depends on the tolerance and means nothing without it: :attr:`curve` has it for all of :data:`TOLERANCES`.

    Attributes:
        value: :math:`\kappa^*`; nan where only a bound is known.
        lower: a lower bound on it, certified by residuals; equal to ``value`` where that is known.
        lambda_max: the largest eigenvalue in magnitude.
        lambda_min: the smallest magnitude above the tolerance; where only ``lower`` is known, an upper bound on it.
        nullity: eigenvalues within the tolerance of zero, deflated ones included; None where unknown.
        negative: eigenvalues below minus the tolerance; None where unknown.
        tolerance: :math:`\tau`, relative to ``lambda_max``.
        floor: the relative size below which an eigenvalue cannot be told from rounding in the operator's dtype.
        curve: :math:`\kappa^*` (or its lower bound) at each of :data:`TOLERANCES`; nan below the floor.
        method: "dense", "gram" or "lanczos".
        converged: whether ``value`` is the number and not a bound.
        matvecs: products that were formed.
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

    def __str__(self) -> str:
        number = f"{self.value:.4g}" if self.converged else f"at least {self.lower:.4g}"
        return f"condition number {number} (tolerance {self.tolerance:g}, {self.method})"


def condition_number(
    operator: LinearOperator | GramSpectrum,
    *,
    tolerance: float = 1e-6,
    method: Literal["auto", "dense", "lanczos"] = "auto",
    null: Tensor | None = None,
    steps: int = 200,
    generator: torch.Generator | None = None,
) -> ConditionNumber:
    """Return the condition number of a symmetric matrix over its nonzero eigenvalues.

    Exact where all eigenvalues can be had: from the dense matrix up to 3000 rows, or from the Gram matrix of a
    Gauss-Newton or Fisher matrix (:func:`gram.gauss_newton_spectrum`). Else Lanczos: it cannot reach the smallest
    nonzero eigenvalue of a large matrix, so only a lower bound is given. A Ritz pair with value t and residual r says
    that an eigenvalue lies in [t - r, t + r]; where that interval keeps clear of zero by the tolerance, it certifies
    a bound, and no other number is given.

    Args:
        operator: the matrix, or its Gram spectrum.
        tolerance: relative to the largest magnitude; what is smaller counts as zero.
        method: "auto" picks; "dense" or "lanczos" insist.
        null: (n, k) directions known to be null, taken out first (:func:`null_space.null_directions`).
        steps: Lanczos steps, where it comes to that.
        generator: draws the start vector; None for one with seed 0.

    Raises:
        ValueError: the tolerance is not in (0, 1), or below what the dtype can tell from zero.
    """
    if isinstance(operator, GramSpectrum):
        spectrum = operator.values.double()
        relative = operator.floor / float(spectrum.max()) if float(spectrum.max()) > 0 else operator.floor
        _check(tolerance, relative)
        return _exact(spectrum, operator.parameters, tolerance, relative, "gram", 0)
    floor = 8 * float(torch.finfo(operator.dtype).eps)
    _check(tolerance, floor)
    n, known = operator.shape[0], 0 if null is None else null.shape[1]
    if method == "dense" or (method == "auto" and n <= _DENSE):
        values = torch.linalg.eigvalsh(operator.dense().double())
        return _exact(values, n, tolerance, floor, "dense", n)
    reduced = operator if null is None else deflate(operator, null)
    return _bounded(reduced, tolerance, floor, min(steps, n - known), known, null, generator)


def _check(tolerance: float, floor: float) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance must lie between 0 and 1; got {tolerance}")
    if tolerance < floor:
        raise ValueError(
            f"a tolerance of {tolerance:g} is below the precision floor {floor:.2g}: smaller eigenvalues cannot be "
            "told from rounding; measure in float64 (model.double()), or raise the tolerance"
        )


def _exact(values: Tensor, rows: int, tolerance: float, floor: float, method: str, matvecs: int) -> ConditionNumber:
    size = values.abs()
    top = float(size.max())
    smallest = _smallest(size, tolerance * top)
    curve = tuple(top / _smallest(size, t * top) if t >= floor else math.nan for t in TOLERANCES)
    value = top / smallest
    # Of all rows of the matrix: a Gram matrix may list fewer values than that, or zeros beyond them.
    nullity = rows - int((size > tolerance * top).sum())
    negative = int((values < -tolerance * top).sum())
    return ConditionNumber(
        value, value, top, smallest, nullity, negative, tolerance, floor, curve, method, True, matvecs
    )


def _smallest(size: Tensor, threshold: float) -> float:
    above = size[size > threshold]
    return float(above.min()) if len(above) else math.nan


def _bounded(
    operator: LinearOperator,
    tolerance: float,
    floor: float,
    steps: int,
    known: int,
    null: Tensor | None,
    generator: torch.Generator | None,
) -> ConditionNumber:
    own = generator if generator is not None else torch.Generator().manual_seed(0)
    start = torch.randn(operator.shape[0], generator=own, dtype=torch.float64).to(operator.device)
    start = operator @ start if null is not None else start  # one product takes the null directions out of it
    alphas, betas = tridiagonalize(operator, start, steps)
    values, vectors = torch.linalg.eigh(torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1))
    residuals = (betas[-1] * vectors[-1]).abs() + floor * values.abs().max()
    top = float(values.abs().max())  # a Ritz value is never larger than the largest eigenvalue
    sizes = values.abs()

    def bound(relative: float) -> float:
        """The smallest |eigenvalue| certified to lie above the threshold, from above."""
        top_at_most = top + float(residuals[int(sizes.argmax())])
        clear = sizes - residuals > relative * top_at_most
        return float((sizes + residuals)[clear].min()) if bool(clear.any()) else math.nan

    smallest = bound(tolerance)
    curve = tuple(top / bound(t) if t >= floor else math.nan for t in TOLERANCES)
    nullity = known if known else None
    return ConditionNumber(
        math.nan, top / smallest, top, smallest, nullity, None, tolerance, floor, curve, "lanczos", False,
        len(alphas) + (null is not None),
    )  # fmt: skip
