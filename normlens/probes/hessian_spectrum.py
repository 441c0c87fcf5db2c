"""HessianSpectrum: how steep is the loss, and does it curve downwards anywhere?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normlens.batch import batch_size
from normlens.curvature.hessian import hessian
from normlens.curvature.lanczos import eigsh
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading

__all__ = ["HessianSpectrum"]


@dataclass(frozen=True)
class HessianSpectrum:
    r"""The largest and smallest eigenvalues of the loss's Hessian on the probe data, with their residuals.

    ``top`` (k,) descending, ``lambda_max`` and ``lambda_min``, each with the residual :math:`\|Hv - \lambda v\|` as
    its error (an eigenvalue lies within that distance), and ``matvecs``, the products it took. Right through every
    normalization layer, train-mode batch norm included; the mode is that of the measurement.

    Args:
        k: how many of the largest.
        tol: residual relative to the largest eigenvalue at which a pair has converged.
        max_matvecs: products for each end at most. ``lambda_max`` must have converged by then; what else has not is
            recorded with its residual as its error.
    """

    k: int = 5
    tol: float = 1e-3
    max_matvecs: int = 100

    def cost(self, step: Step) -> float:
        """About thirty products for the top, as many for the bottom, of three gradients each."""
        return 200.0

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            RuntimeError: the largest eigenvalue has not converged within ``max_matvecs``.
        """
        operator = hessian(step.risk, check=not step.previous.first)
        top = eigsh(operator, self.k, "LA", tol=self.tol, max_matvecs=self.max_matvecs, generator=step.generator)
        bottom = eigsh(operator, 1, "SA", tol=10 * self.tol, max_matvecs=self.max_matvecs, generator=step.generator)
        if not bool(top.converged[0]):
            raise RuntimeError(
                f"lambda_max must converge; after {top.matvecs} products its residual is still "
                f"{float(top.residuals[0]):.2g}: raise max_matvecs or tol"
            )
        n = _samples(step.risk)
        yield Reading("top", top.values.cpu().numpy(), dims=("index",), error=float(top.residuals.max()), n=n)
        yield Reading("lambda_max", float(top.values[0]), error=float(top.residuals[0]), n=n)
        yield Reading("lambda_min", float(bottom.values[0]), error=float(bottom.residuals[0]), n=n)
        yield Reading("matvecs", float(top.matvecs + bottom.matvecs))


def _samples(risk: EmpiricalRisk) -> int:
    """Return the number of samples that the risk is a mean over."""
    return sum(batch_size(batch) for batch in risk.batches())
