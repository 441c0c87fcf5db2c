"""From points to fitted mixtures: standardize, bin, start several times, let EM climb, and go back to the points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.information.mixture_em import (
    Cells,
    Climb,
    Components,
    bin_cells,
    climb,
    k_means,
    sample_cells,
    scattered,
    seed,
)

__all__ = ["Search", "double", "search"]

_WARM_UP = 10  # EM steps after which the best of the starts is chosen

_SEEDS = 4  # starts by k-means++ alone, before others by k-means

_SOME = 1024  # points of which the median is taken


@dataclass(frozen=True)
class Search:
    """How to look for a mixture: the settings of :func:`normlens.information.gaussian_mixture.fit`."""

    components: int
    bins: int | None
    restarts: int
    steps: int
    tolerance: float
    floor: float
    min_weight: float
    generator: torch.Generator

    def __post_init__(self) -> None:
        bins = 1 if self.bins is None else self.bins
        least = {"components": self.components, "bins": bins, "restarts": self.restarts, "steps": self.steps}
        for name, value in least.items():
            if value < 1:
                raise ValueError(f"a mixture needs {name} of at least 1; got {value}; leave it at its default")
        if not (self.floor > 0 and self.tolerance >= 0 and 0 <= self.min_weight < 1 / self.components):
            raise ValueError(
                "a mixture needs a floor above 0, a tolerance of at least 0 and min_weight from 0 to below 1/components"
                f"; got {self.floor}, {self.tolerance}, {self.min_weight}; leave them at their defaults"
            )


def search(points: Tensor, how: Search) -> Climb:
    """Fit ``G`` mixtures to points (G, P, N); as ``bound`` the log-likelihood of the points (nats a point) comes back.

    Components are sorted by the mean of the first dimension; those that were dropped come last, with the mean and the
    variance of all points. Where a dimension is constant or not finite, everything is nan.

    Args:
        points: float64.
        how: the settings; ``bins`` needs P = 1.
    """
    center, scale = _median_and_half_range(points)
    usable = (center.isfinite() & (scale > 0) & scale.isfinite()).all(1, keepdim=True)
    z = torch.where(usable, (points - center) / scale, 0.0)
    found = _best(sample_cells(z) if how.bins is None else bin_cells(z, how.bins), how)
    log_likelihood = _log_likelihood(found.components, z) - scale.log().sum((1, 2))
    weight, mean, var = _ordered(found.components)
    known = torch.where(usable, 1.0, math.nan)
    components = Components(known * weight, known * (center.mT + scale.mT * mean), known * scale.mT.square() * var)
    fine = usable[:, 0, 0]
    return Climb(components, torch.where(fine, log_likelihood, math.nan), found.steps, found.converged & fine)


def _median_and_half_range(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median and half the interquartile range of up to 1024 points; where that is 0, their deviation."""
    some = points[..., scattered(points.shape[2], _SOME, points.device)].sort(2).values
    low, middle, high = (some[..., int(q * (some.shape[2] - 1)), None] for q in (0.25, 0.5, 0.75))
    deviation = points.std(2, correction=0, keepdim=True)
    unit = torch.where(high > low, (high - low) / 2, deviation)
    return middle, torch.where(deviation > 0, unit, deviation)  # nan, where a point is


def _best(cells: Cells, how: Search) -> Climb:
    starts = 1 if how.components == 1 else how.restarts
    ways = ((seed, min(starts, _SEEDS)), (k_means, starts - _SEEDS))
    return _highest([_of_starts(cells, way, count, how) for way, count in ways if count > 0])


def _of_starts(cells: Cells, way: Callable[..., Components], starts: int, how: Search) -> Climb:
    """Let EM climb from the best of several starts, as it is after some steps."""
    many = cells.repeat(starts)
    start = way(many, how.components, how.generator, floor=how.floor)
    tried = climb(many, start, steps=_WARM_UP, tolerance=how.tolerance, floor=how.floor, min_weight=0.0)
    groups = torch.arange(len(cells.mass), device=tried.bound.device)
    best = tried.bound.view(-1, starts).argmax(1) + starts * groups
    rules = {"tolerance": how.tolerance, "floor": how.floor, "min_weight": how.min_weight}
    return climb(cells, tried.components.at(best), steps=how.steps, **rules)


def _highest(climbs: Sequence[Climb]) -> Climb:
    """Return for each group the climb that ended highest, the first of equals."""
    best = climbs[0]
    for other in climbs[1:]:
        up = other.bound > best.bound
        parts = zip(other.components, best.components, strict=True)
        components = Components(*(torch.where(up[:, None, None], new, old) for new, old in parts))
        numbers = zip(other[1:], best[1:], strict=True)
        best = Climb(components, *(torch.where(up, new, old) for new, old in numbers))
    return best


def _log_likelihood(components: Components, z: Tensor) -> Tensor:
    total = torch.full_like(z[:, 0], -math.inf)
    for weight, mean, var in zip(*(part.unbind(1) for part in components), strict=True):
        terms = (z - mean.unsqueeze(2)).square_().mul_(-0.5 / var.unsqueeze(2)).sum(1)
        constant = weight.log() - 0.5 * (2 * math.pi * var).log().sum(1, keepdim=True)
        total = torch.logaddexp(total, terms.add_(constant))
    return total.mean(1)


def _ordered(components: Components) -> Components:
    weight, mean, var = components
    dead = weight <= 0
    mean, var = torch.where(dead, 0.0, mean), torch.where(dead, 1.0, var)
    order = torch.where(dead, math.inf, mean[:, :, :1]).argsort(dim=1, stable=True)
    return Components(*(part.gather(1, order.expand_as(part)) for part in (weight, mean, var)))


def double(x: Tensor) -> Tensor:
    """Return float64 values without their graph; on the CPU where the device has none."""
    return (x.detach().cpu() if x.device.type == "mps" else x.detach()).double()
