"""HessianSpectrum: how steep is the loss, and does it curve downwards anywhere?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from normlens.curvature.density import SpectralDensity, spectral_density
from normlens.curvature.eigenpairs import Eigenpairs
from normlens.curvature.hessian import hessian
from normlens.curvature.lanczos import eigsh
from normlens.curvature.operator import LinearOperator
from normlens.probes.warm_start import vectors_reading, warm_start
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Schedule

__all__ = ["HessianSpectrum"]


_BOTTOM = "bottom_vectors"


@dataclass(frozen=True)
class HessianSpectrum:
    r"""The largest and smallest eigenvalues of the loss's Hessian on the probe data, with their residuals.

    ``top`` (k,) descending, ``lambda_max`` and ``lambda_min``, each with the residual :math:`\|Hv - \lambda v\|` as
    its error (an eigenvalue lies within that distance), and ``matvecs``, the products it took. Right through every
    normalization layer, train-mode batch norm included; the mode is that of the measurement. Each measurement starts
    from the vectors of the last one and a fresh random direction at each end; they are not stored.

    With ``density_probes`` also the density of all eigenvalues by stochastic Lanczos quadrature, see
    :func:`normlens.curvature.density.spectral_density`: ``density`` and ``density_stderr`` (grid,) over ``grid``,
    ``ritz`` and ``ritz_weights`` (probe, node), ``resolution``, ``density_width`` (of the Gaussians),
    ``density_matvecs``; and the shares of eigenvalues below, within and above the resolution around zero,
    ``share_negative``, ``share_flat`` and ``share_positive``, where the quadrature can answer for them.

    Args:
        k: how many of the largest.
        tol: residual relative to the largest eigenvalue at which a pair has converged.
        max_matvecs: products for each end at most. ``lambda_max`` must have converged by then; what else has not is
            recorded with its residual as its error.
        density_probes: random vectors for the density; 0 for no density.
        density_steps: products for each of them.
        density_when: a schedule within the lens's own, e.g. ``at(last_step)``; None for every measurement.

    Raises:
        ValueError: a density of one probe, which would have no error, or of a negative number of probes.
    """

    k: int = 5
    tol: float = 1e-3
    max_matvecs: int = 100
    density_probes: int = 0
    density_steps: int = 40
    density_when: Schedule | None = None

    def __post_init__(self) -> None:
        if self.density_probes < 0 or self.density_probes == 1:
            raise ValueError(
                f"density_probes must be 0 for no density, or at least 2: the error is the spread over them; "
                f"got {self.density_probes}"
            )

    def cost(self, step: Step) -> float:
        """About thirty products for the top, as many for the bottom, of three gradients each, and the density's."""
        every = self.density_when is None
        return 200.0 + (3.0 * self.density_probes * self.density_steps if every else 0.0)

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            RuntimeError: the largest eigenvalue has not converged within ``max_matvecs``.
        """
        operator = hessian(step.risk, check=not step.previous.first)
        top, bottom = self._ends(operator, step)
        if not bool(top.converged[0]):
            raise RuntimeError(
                f"lambda_max must converge; after {top.matvecs} products its residual is still "
                f"{float(top.residuals[0]):.2g}: raise max_matvecs or tol"
            )
        n = step.risk.samples
        yield Reading("top", top.values.cpu().numpy(), dims=("index",), error=float(top.residuals.max()), n=n)
        yield Reading("lambda_max", float(top.values[0]), error=float(top.residuals[0]), n=n)
        yield Reading("lambda_min", float(bottom.values[0]), error=float(bottom.residuals[0]), n=n)
        yield Reading("matvecs", float(top.matvecs + bottom.matvecs))
        yield vectors_reading(top.vectors)
        yield vectors_reading(bottom.vectors, _BOTTOM)
        if self.density_probes and (self.density_when is None or self.density_when(step.index)):
            found = spectral_density(
                operator, steps=self.density_steps, probes=self.density_probes, generator=step.generator
            )
            yield from _density_readings(found, n)

    def _ends(self, operator: LinearOperator, step: Step) -> tuple[Eigenpairs, Eigenpairs]:
        n, limit, drawn = operator.shape[0], self.max_matvecs, step.generator
        before, below = warm_start(step.previous, n), warm_start(step.previous, n, _BOTTOM)
        top = eigsh(operator, self.k, "LA", tol=self.tol, max_matvecs=limit, start=before, nearby=True, generator=drawn)
        bottom = eigsh(
            operator, 1, "SA", tol=10 * self.tol, max_matvecs=limit, start=below, nearby=True, generator=drawn
        )
        return top, bottom


def _density_readings(found: SpectralDensity, n: int) -> Iterator[Reading]:
    yield Reading("density", found.density.numpy(), dims=("grid",), n=n)
    yield Reading("density_stderr", found.stderr.numpy(), dims=("grid",), n=n)
    yield Reading("grid", found.grid.numpy(), dims=("grid",))
    yield Reading("ritz", found.ritz.numpy(), dims=("probe", "node"), n=n)
    yield Reading("ritz_weights", found.weights.numpy(), dims=("probe", "node"), n=n)
    yield Reading("resolution", found.resolution)
    yield Reading("density_width", found.width)
    yield Reading("density_matvecs", float(found.cost))
    if not found.resolution > 0:
        return  # a matrix of zeros
    edge = found.resolution
    for name, low, high in (("negative", -math.inf, -edge), ("flat", -edge, edge), ("positive", edge, math.inf)):
        share = found.fraction(low, high)
        if share.converged:
            yield Reading(f"share_{name}", share.value, error=share.error, n=n)
