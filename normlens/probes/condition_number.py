"""ConditionNumber: how ill-conditioned is the loss, exactly?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from normlens.curvature.condition import TOLERANCES, condition_number
from normlens.curvature.gram import gauss_newton_spectrum
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["ConditionNumber"]


@dataclass(frozen=True)
class ConditionNumber:
    r"""The condition number of the Gauss-Newton matrix over its nonzero eigenvalues, exact for the samples it is of.

    .. math:: \kappa^*(\tau) = \lambda_{\max} \,/\, \min\{\lambda : \lambda > \tau\lambda_{\max}\}

    of :math:`J^\top SJ`, whose nonzero spectrum is that of a Gram matrix of (samples x outputs) rows, whatever the
    number of parameters. ``kappa`` at ``tolerance``, ``curve`` at each of ``tolerance_grid``, ``lambda_max``,
    ``lambda_min_nonzero``, ``nullity`` (eigenvalues within the tolerance of zero) and ``floor``. A condition number
    without its tolerance means nothing; one of other samples is another one.

    Args:
        samples: of the probe data; the rows of the Gram matrix are this times the outputs.
        tolerance: relative to the largest eigenvalue.
    """

    samples: int = 64
    tolerance: float = 1e-6

    def cost(self, step: Step) -> float:
        """A backward pass for every row of the Gram matrix, on a part of the data."""
        return 40.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``."""
        spectrum = gauss_newton_spectrum(step.risk.head(self.samples))
        result = condition_number(spectrum, tolerance=self.tolerance)
        n = spectrum.samples
        yield Reading("kappa", result.value, n=n)
        yield Reading("lambda_max", result.lambda_max, n=n)
        yield Reading("lambda_min_nonzero", result.lambda_min, n=n)
        yield Reading("nullity", float(result.nullity or 0), n=n)
        yield Reading("tolerance", self.tolerance)
        yield Reading("floor", result.floor)
        yield Reading("tolerance_grid", np.array(TOLERANCES), dims=("tolerance_grid",))
        yield Reading("curve", np.array(result.curve), dims=("tolerance_grid",), n=n)
