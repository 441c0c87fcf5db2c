"""ConditionNumber: how ill-conditioned is the loss?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from normlens.curvature.condition import DENSE_ROWS, SHARES, TOLERANCES, condition_number
from normlens.curvature.condition import ConditionNumber as Condition
from normlens.curvature.fisher import fisher
from normlens.curvature.gram import gauss_newton_spectrum
from normlens.curvature.hessian import hessian
from normlens.curvature.null_space import NullSpace, null_directions
from normlens.curvature.operator import LinearOperator
from normlens.probes.warm_start import vectors_reading, warm_start
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["ConditionNumber"]

MATRICES = ("gauss_newton", "hessian", "fisher")


@dataclass(frozen=True)
class ConditionNumber:
    r"""The condition number of a curvature matrix over its nonzero eigenvalues: exact, or marked as a bound.

    .. math:: \kappa^*(\tau) = \max|\lambda| \,/\, \min\{|\lambda| : |\lambda| > \tau\max|\lambda|\}

    By default of :math:`J^\top SJ`, the Gauss-Newton matrix, whose nonzero spectrum is that of a Gram matrix of
    (samples x outputs) rows, whatever the number of parameters: exact for the samples it is of. The Hessian and the
    Fisher matrix are exact up to 3000 rows. Exact are ``kappa`` at ``tolerance``, ``curve`` at each of
    ``tolerance_grid``, ``lambda_max``, ``lambda_min_nonzero``, ``nullity`` (eigenvalues within the tolerance of zero),
    ``floor`` and, of the Hessian, ``negative`` (eigenvalues below minus the tolerance).

    Beyond 3000 rows there is no ``kappa`` but ``kappa_lower``, a bound certified by residuals, ``curve`` holds such
    bounds, and ``kappa_quantile`` gives ``lambda_max`` over the quantile of the magnitudes at each of ``share_grid``,
    with ``kappa_quantile_error``; nan where the density cannot tell the quantile from zero. Directions that are null
    by the structure of the network are taken out first (``nullity`` counts them), and Lanczos starts from the
    ``vectors`` of the last measurement, which are not stored. A condition number without its tolerance means nothing;
    one of other samples is another one.

    Args:
        samples: of the probe data; the rows of the Gram matrix are this times the outputs.
        tolerance: relative to the largest eigenvalue.
        matrix: "gauss_newton", "hessian" or "fisher" (of a softmax classifier, exact, whatever the loss).
        params: a glob of parameter names: the diagonal block of these alone; None for the whole network.
        steps: Lanczos steps, beyond 3000 rows.
        probes: of the density, beyond 3000 rows; each takes up to 80 products more; 0 for none.

    Raises:
        ValueError: ``matrix`` is none of these.
    """

    samples: int = 64
    tolerance: float = 1e-6
    matrix: Literal["gauss_newton", "hessian", "fisher"] = "gauss_newton"
    params: str | None = None
    steps: int = 60
    probes: int = 4

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise ValueError(f"matrix must be one of {', '.join(MATRICES)}; got {self.matrix!r}")

    def cost(self, step: Step) -> float:
        """A backward pass for every row of the Gram matrix, on a part of the data; else three gradients a product."""
        if self._by_gram:
            return 40.0
        rows = sum(tensor.numel() for tensor in self._risk(step).parameters.values())
        lanczos = self.steps + self.probes * min(self.steps, 80)
        return 3.0 * max(1, rows if rows <= DENSE_ROWS else lanczos)

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: ``params`` selects nothing, or the tolerance does not fit.
        """
        risk = self._risk(step)
        yield from _readings(self._measured(step, risk), risk.samples, signed=self.matrix == "hessian")

    @property
    def _by_gram(self) -> bool:
        return self.matrix == "gauss_newton"

    def _risk(self, step: Step) -> EmpiricalRisk:
        risk = step.risk.head(self.samples)
        return risk if self.params is None else risk.select(self.params)

    def _measured(self, step: Step, risk: EmpiricalRisk) -> Condition:
        if self._by_gram:
            return condition_number(gauss_newton_spectrum(risk), tolerance=self.tolerance)
        first = not step.previous.first
        operator: LinearOperator = hessian(risk, check=first) if self.matrix == "hessian" else fisher(risk)
        large = operator.shape[0] > DENSE_ROWS
        return condition_number(
            operator,
            tolerance=self.tolerance,
            null=_null(risk) if large else None,
            steps=self.steps,
            probes=self.probes,
            start=warm_start(step.previous, operator.shape[0]),
            generator=step.generator,
        )


def _null(risk: EmpiricalRisk) -> NullSpace | None:
    try:
        return null_directions(risk)
    except ValueError:  # outputs that are no tensor: nothing is known of them, and the Hessian needs nothing
        return None


def _readings(result: Condition, n: int, *, signed: bool) -> Iterable[Reading]:
    if result.converged:
        yield Reading("kappa", result.value, n=n)
    else:
        yield Reading("kappa_lower", result.lower, n=n)
    yield Reading("lambda_max", result.lambda_max, error=result.residual, n=n)
    if result.converged:
        yield Reading("lambda_min_nonzero", result.lambda_min, n=n)
    yield Reading("nullity", float(result.nullity or 0), n=n)
    if signed and result.negative is not None:
        yield Reading("negative", float(result.negative), n=n)
    yield Reading("tolerance", result.tolerance)
    yield Reading("floor", result.floor)
    yield Reading("tolerance_grid", np.array(TOLERANCES), dims=("tolerance_grid",))
    yield Reading("curve", np.array(result.curve), dims=("tolerance_grid",), n=n)
    if not result.converged:
        yield from _bounded(result, n)


def _bounded(result: Condition, n: int) -> Iterable[Reading]:
    yield Reading("matvecs", float(result.matvecs))
    if result.quantiles:
        values, errors = ([getattr(q, what) for q in result.quantiles] for what in ("value", "error"))
        yield Reading("share_grid", np.array(SHARES), dims=("share_grid",))
        yield Reading("kappa_quantile", np.array(values), dims=("share_grid",), n=n)
        yield Reading("kappa_quantile_error", np.array(errors), dims=("share_grid",), n=n)
    if result.vectors is not None:
        yield vectors_reading(result.vectors)
