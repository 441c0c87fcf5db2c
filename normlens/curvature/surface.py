"""Surface: the loss along lines and planes through the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from normlens.risk import EmpiricalRisk
from normlens.typing import Batch, Named

__all__ = ["Surface", "loss_line", "loss_plane"]

CHUNK = 8
"""Points evaluated in one pass over the data: a loader is iterated once for all of them."""

Checkpoint: TypeAlias = "Callable[[Surface], object]"
"""Called with the surface as far as it is known, e.g. to store its ``to_arrays()``."""


@dataclass(frozen=True)
class Surface:
    r"""The loss on a grid, :math:`L(\theta + a d_1 + b d_2)`.

    Attributes:
        x: (X,) the coefficients a.
        y: (Y,) the coefficients b; None for a line.
        loss: (X,) or (X, Y), float64, in the units of the loss; nan where it was not computed yet, or is not a number.
        mode: how the model stood: "train", "eval" or "mixed".
        statistics: what its normalization layers used: "batch", "running" (those of the center, at every point),
            "mixed", or "none" where no layer keeps running statistics.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64] | None
    loss: NDArray[np.float64]
    mode: str
    statistics: str

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the surface as NumPy arrays by name, for ``numpy.savez``; a line has no ``y``."""
        named = {"x": self.x, "y": self.y, "loss": self.loss, "mode": self.mode, "statistics": self.statistics}
        return {name: np.array(value) for name, value in named.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Surface:
        """Return the surface that :meth:`to_arrays` wrote, to be gone on with as ``done``.

        Raises:
            ValueError: arrays are missing, or the loss does not fit the axes.
        """
        if missing := sorted({"x", "loss", "mode", "statistics"} - set(arrays)):
            raise ValueError(f"a surface needs the arrays of to_arrays(); missing {missing}; save all of them")
        x, y, loss = (np.array(arrays[k], dtype=np.float64) if k in arrays else None for k in ("x", "y", "loss"))
        axes = [axis for axis in (x, y) if axis is not None]
        if x is None or loss is None or loss.shape != tuple(len(axis) for axis in axes):
            shapes = ", ".join(f"{k} {np.shape(arrays[k])}" for k in ("x", "y", "loss") if k in arrays)
            raise ValueError(f"the loss of a surface has a row for each x and a column for each y; got {shapes}")
        return cls(x, y, loss, str(arrays["mode"]), str(arrays["statistics"]))


def loss_line(
    risk: EmpiricalRisk,
    direction: Named,
    *,
    steps: int = 51,
    reach: float = 1.0,
    progress: bool = False,
    done: Surface | None = None,
    checkpoint: Checkpoint | None = None,
) -> Surface:
    r"""Return :math:`L(\theta + a d)` for ``steps`` evenly spaced a from -reach to reach.

    An odd number of steps holds the center exactly, where the loss is ``risk.loss()``. Ctrl-C returns what is done;
    pass that as ``done`` to go on.

    Args:
        risk: L; nothing of its model is touched.
        direction: d by parameter name (see :mod:`normlens.curvature.directions`); a parameter it lacks stays in place.
        steps: points on the line.
        reach: the largest a, in lengths of d.
        progress: whether to show a bar.
        done: an earlier line of the same grid and mode, whose nan cells are computed and the rest taken over.
        checkpoint: called with the unfinished line every few points, so that a kill costs no more than those.

    Raises:
        ValueError: the direction names what is no parameter of the risk or has another shape; fewer than two steps;
            ``done`` of another grid or mode.
    """
    x = _axis(steps, reach)
    start = Surface(x, None, np.full(steps, np.nan), risk.mode, _statistics(risk))
    return _fill(risk, [direction], _taken_over(start, done), progress, checkpoint)


def loss_plane(
    risk: EmpiricalRisk,
    directions: Sequence[Named],
    *,
    steps: int = 25,
    reach: float = 1.0,
    progress: bool = False,
    done: Surface | None = None,
    checkpoint: Checkpoint | None = None,
) -> Surface:
    r"""Return :math:`L(\theta + a d_1 + b d_2)` on a square grid of ``steps`` x ``steps`` points.

    It takes ``steps**2`` evaluations of the loss. Ctrl-C returns what is done; pass that as ``done`` to go on. Only
    parameters move: with mode "eval" the running statistics are those of the center, so that far from it the plane of
    a batch-normalized network shows what that network would never do; mode "train" takes the statistics of each batch.

    Source: Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018, arXiv:1712.09913.

    Args:
        risk: L; nothing of its model is touched.
        directions: d_1 and d_2, each by parameter name (see :mod:`normlens.curvature.directions`).
        steps: points on each side.
        reach: the largest a and b, in lengths of the directions.
        progress: whether to show a bar.
        done: an earlier surface of the same grid and mode, whose nan cells are computed and the rest taken over.
        checkpoint: called with the unfinished surface every few points, so that a kill costs no more than those.

    Raises:
        ValueError: not two directions; one that names what is no parameter of the risk or has another shape; fewer
            than two steps; ``done`` of another grid or mode.
    """
    if len(directions) != 2:
        raise ValueError(f"a plane needs two directions; got {len(directions)}; use loss_line for one")
    x = _axis(steps, reach)
    start = Surface(x, x.copy(), np.full((steps, steps), np.nan), risk.mode, _statistics(risk))
    return _fill(risk, directions, _taken_over(start, done), progress, checkpoint)


def _axis(steps: int, reach: float) -> NDArray[np.float64]:
    if steps < 2:
        raise ValueError(f"a line needs at least 2 steps; got {steps}")
    return reach * (2 * np.arange(steps) - (steps - 1)) / (steps - 1)  # unlike linspace exactly 0 in the middle


def _taken_over(start: Surface, done: Surface | None) -> Surface:
    if done is None:
        return start
    for name in ("x", "y", "mode", "statistics"):
        if not np.array_equal(getattr(start, name), getattr(done, name)):
            raise ValueError(
                f"a surface to go on with must have the same {name}; got {getattr(done, name)!r:.60} instead of "
                f"{getattr(start, name)!r:.60}; pass the same steps, reach and mode, or done=None"
            )
    return Surface(start.x, start.y, done.loss.copy(), start.mode, start.statistics)


def _fill(
    risk: EmpiricalRisk,
    directions: Sequence[Named],
    surface: Surface,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Surface:
    """Compute the cells that are nan, a chunk at a time; the surface was made by us and may be written to."""
    for direction in directions:
        _check(risk, direction)
    center = risk.parameters
    cells = [tuple(map(int, cell)) for cell in np.argwhere(np.isnan(surface.loss))]
    axes = [axis for axis in (surface.x, surface.y) if axis is not None]
    with tqdm(total=len(cells), disable=not progress, unit="point") as bar:
        try:
            for first in range(0, len(cells), CHUNK):
                chunk = cells[first : first + CHUNK]
                points = [tuple(float(axis[i]) for axis, i in zip(axes, cell, strict=True)) for cell in chunk]
                for cell, loss in zip(chunk, _losses(risk, center, directions, points), strict=True):
                    surface.loss[cell] = loss
                bar.update(len(chunk))
                if checkpoint is not None:
                    checkpoint(surface)
        except KeyboardInterrupt:  # hours of work are not thrown away: the caller sees nan and can go on
            pass
    return surface


def _check(risk: EmpiricalRisk, direction: Named) -> None:
    parameters = risk.parameters
    for name, tensor in direction.items():
        if name not in parameters:
            raise ValueError(
                f"a direction must name parameters of the risk; got {name!r}, which is none of "
                f"{list(parameters)[:8]}; make it with normlens.curvature.directions"
            )
        if tensor.shape != parameters[name].shape:
            raise ValueError(
                f"a direction must have the shape of its parameter; got {tuple(tensor.shape)} for {name!r} of shape "
                f"{tuple(parameters[name].shape)}"
            )


def _losses(
    risk: EmpiricalRisk, center: Named, directions: Sequence[Named], points: Sequence[tuple[float, ...]]
) -> list[float]:
    """Return the loss at each point, all of them in one pass over the data."""

    def evaluate(batch: Batch) -> dict[str, Tensor]:
        return {str(i): risk.batch_loss(_moved(center, directions, point), batch) for i, point in enumerate(points)}

    with torch.no_grad():
        losses = risk._mean(evaluate)
    return [float(losses[str(i)]) for i in range(len(points))]


def _moved(center: Named, directions: Sequence[Named], point: tuple[float, ...]) -> dict[str, Tensor]:
    """Return theta + a d_1 + b d_2: the parameters that move, as new tensors; at the center exactly theta."""
    theta: dict[str, Tensor] = {}
    for coefficient, direction in zip(point, directions, strict=True):
        for name, tensor in direction.items():
            theta[name] = theta.get(name, center[name]) + coefficient * tensor.to(center[name])
    return theta


def _statistics(risk: EmpiricalRisk) -> str:
    """Say which statistics the layers use that keep running ones, as ``torch.nn.BatchNorm2d`` does."""
    training = {m.training for m in risk.model.modules() if getattr(m, "running_mean", None) is not None}
    if not training:
        return "none"
    if risk.mode != "mixed":
        return "batch" if risk.mode == "train" else "running"
    return "mixed" if len(training) > 1 else "batch" if training == {True} else "running"
