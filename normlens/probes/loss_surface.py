"""LossSurface: how does the loss look in a plane through the parameters?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from normlens.curvature.directions import filter_normalized, from_vector
from normlens.curvature.hessian import hessian
from normlens.curvature.lanczos import eigsh
from normlens.curvature.surface import loss_plane
from normlens.risk import EmpiricalRisk
from normlens.run.probe import Step
from normlens.run.reading import Reading
from normlens.typing import Named, Schedule

__all__ = ["LossSurface"]

DIRECTIONS = ("random", "eigenvectors", "update")
STATISTICS = ("none", "running", "batch", "mixed")

PARALLEL = 1e-6
"""Share of the gradient across the update below which the two span no plane, but rounding does."""


@dataclass(frozen=True)
class LossSurface:
    r"""The loss on a plane through the parameters, :math:`L(\theta + x d_1 + y d_2)`.

    ``loss`` (X, Y) over ``x`` (X,) and ``y`` (Y,), from -reach to reach in lengths of the directions; ``center``, the
    loss at the parameters themselves; ``length`` (2,), :math:`\|d_i\|_2`; ``directions`` and ``statistics``, what the
    normalization layers used, as indices into :data:`DIRECTIONS` and :data:`STATISTICS`. Exact for these samples, of
    others it says nothing. A plane is a slice: what it shows may be different in another one.

    Source: Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018, arXiv:1712.09913.

    Args:
        directions: "random": two filter-normalized random ones; "eigenvectors": of the two largest eigenvalues of the
            Hessian on the same samples, of length 1 (``curvature`` (2,) holds the eigenvalues); "update": the last
            optimizer step, so that x = 1 is another one like it, and the negative gradient across it, as long.
        steps: points on each side, odd, so that the parameters themselves are one of them.
        reach: the largest x and y.
        samples: of the probe data. With batch statistics the surface is that of a batch of so many: pass the size of
            the probe batch for the very loss that the other probes look at.
        when: a schedule within the lens's own, e.g. ``at(last_step)``; None to measure whenever the lens does.

    Raises:
        ValueError: other directions, or an even number of steps.
    """

    directions: Literal["random", "eigenvectors", "update"] = "random"
    steps: int = 11
    reach: float = 1.0
    samples: int = 64
    when: Schedule | None = None

    def __post_init__(self) -> None:
        if self.directions not in DIRECTIONS:
            raise ValueError(f"directions must be one of {', '.join(DIRECTIONS)}; got {self.directions!r}")
        if self.steps < 3 or self.steps % 2 == 0:
            raise ValueError(f"steps must be odd and at least 3, to have the center on the grid; got {self.steps}")

    @property
    def uses_update(self) -> bool:
        """Whether the lens is to keep the last optimizer step."""
        return self.directions == "update"

    def cost(self, step: Step) -> float:
        """A forward pass, a third of a gradient, for each point, and the products for the eigenvectors."""
        return self.steps**2 / 3 + (100.0 if self.directions == "eigenvectors" else 0.0)

    def __call__(self, step: Step) -> Iterable[Reading]:
        """Measure at ``step``.

        Raises:
            ValueError: there is nothing to move, or the last update is not known or spans no plane with the gradient.
            RuntimeError: the eigenvectors have not converged.
        """
        risk = step.risk.head(self.samples)
        if not risk.parameters:
            raise ValueError("a surface needs at least one trainable parameter; all of them are frozen")
        n = risk.samples
        plane, curvature = self._plane(risk, step)
        surface = loss_plane(risk, plane, steps=self.steps, reach=self.reach)
        yield Reading("loss", surface.loss, dims=("x", "y"), n=n)
        yield Reading("x", surface.x, dims=("x",), n=n)
        yield Reading("y", surface.x, dims=("y",), n=n)
        yield Reading("center", surface.loss[self.steps // 2, self.steps // 2], n=n)
        yield Reading("length", np.array([_norm(direction) for direction in plane]), dims=("direction",))
        yield Reading("directions", float(DIRECTIONS.index(self.directions)))
        yield Reading("statistics", float(STATISTICS.index(surface.statistics)))
        yield from curvature

    def _plane(self, risk: EmpiricalRisk, step: Step) -> tuple[list[Named], list[Reading]]:
        if self.directions == "eigenvectors":
            return _eigenvectors(risk, step)
        if self.directions == "update":
            return _update(risk, step.update), []
        return [filter_normalized(risk, step.generator) for _ in range(2)], []


def _eigenvectors(risk: EmpiricalRisk, step: Step) -> tuple[list[Named], list[Reading]]:
    pairs = eigsh(hessian(risk, check=not step.previous.first), 2, "LA", generator=step.generator)
    if not bool(pairs.converged.all()):
        raise RuntimeError(
            f"the eigenvectors must converge; after {pairs.matvecs} products the residuals are "
            f"{pairs.residuals.tolist()}: take directions='random'"
        )
    error = float(pairs.residuals.max())
    reading = Reading("curvature", pairs.values.cpu().numpy(), dims=("direction",), error=error)
    return [from_vector(risk, vector) for vector in pairs.vectors.T], [reading]


def _update(risk: EmpiricalRisk, update: Named | None) -> list[Named]:
    r"""Return u and, as long, what is orthogonal to it of the negative gradient."""
    if update is None:
        raise ValueError("directions='update' needs the last optimizer step, which is not known here; measure from "
                         "step 1 on, or take directions='random'")  # fmt: skip
    first = {name: update[name].detach() for name in risk.parameters}
    gradient = risk.gradient()
    length, steepness = _norm(first), _norm(gradient)
    share = _dot(gradient, first) / length**2 if length else 0.0
    across = {name: share * first[name] - tensor for name, tensor in gradient.items()}
    height = _norm(across)
    if not length or height <= PARALLEL * steepness:
        raise ValueError(
            f"the last update and the gradient must span a plane; got an update of length {length:.3g} and a gradient "
            f"of {steepness:.3g}, of which {height:.3g} is across it: take directions='random'"
        )
    return [first, {name: length / height * tensor for name, tensor in across.items()}]


def _dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return math.fsum(float((one[name].double() * other[name].double()).sum()) for name in one)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(_dot(tensors, tensors))
