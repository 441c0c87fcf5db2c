"""EM for many Gaussian mixtures with diagonal covariance at once, on samples or on cells of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Cells", "Climb", "Components", "bin_cells", "climb", "k_means", "maximize", "sample_cells", "scattered", "seed",
]  # fmt: skip

_LLOYD = 20  # steps of k-means, which has mostly settled then
_MOST_SEEDS = 1024  # cells among which seeds are drawn
_TINY = torch.finfo(torch.float64).tiny


class Cells(NamedTuple):
    r"""``G`` data sets of ``M`` cells: ``mass`` (G, 1, M) sums to one, ``features`` (G, 2P, M) are means in a cell.

    The features are the means of :math:`x` and of :math:`x^2`, so that within a cell nothing but the posterior is
    approximated (taken as one). A cell of a single value is that value.
    """

    mass: Tensor
    features: Tensor

    def at(self, chosen: Tensor) -> Cells:
        """Return the data sets of these numbers, or that a mask has chosen."""
        return Cells(*(part[chosen] for part in self))

    def repeat(self, times: int) -> Cells:
        """Return each data set ``times`` times in a row."""
        return Cells(*(part.repeat_interleave(times, 0) for part in self))


class Components(NamedTuple):
    """``G`` mixtures of ``K`` components: ``weight`` (G, K, 1), ``mean`` and ``var`` (G, K, P); weight 0 is dead."""

    weight: Tensor
    mean: Tensor
    var: Tensor

    def at(self, chosen: Tensor) -> Components:
        """Return the mixtures of these numbers, or that a mask has chosen."""
        return Components(*(part[chosen] for part in self))


class Climb(NamedTuple):
    """Where EM ended: the mixtures, the bound (nats a value), the steps taken and whether it converged, (G,) each."""

    components: Components
    bound: Tensor
    steps: Tensor
    converged: Tensor


def sample_cells(points: Tensor) -> Cells:
    """Return every point of (G, P, M) as a cell of its own."""
    mass = torch.full_like(points[:, :1], 1 / points.shape[2])
    return Cells(mass, torch.cat([points, points.square()], 1))


def bin_cells(points: Tensor, bins: int) -> Cells:
    r"""Return the points of (G, 1, M) in ``bins`` cells of equal width in :math:`\mathrm{asinh}(x)`.

    Where x is counted from the median in a robust unit, cells are fine where most values are and wide in the tails, so
    that an outlier takes no resolution.
    """
    x = points[:, 0]
    u = x.float().asinh_()  # a value at an edge may fall to either side, and is counted once
    least, most = u.aminmax(dim=1, keepdim=True)
    width = torch.where(most > least, (most - least) / bins, 1.0)
    index = u.sub_(least).div_(width).long().clamp_(max=bins - 1)
    index += bins * torch.arange(len(x), device=x.device).unsqueeze(1)
    flat = index.flatten()
    sums = [
        torch.zeros(len(x) * bins, device=x.device, dtype=x.dtype).index_add_(0, flat, values.flatten()).view(-1, bins)
        for values in (torch.ones_like(x), x, x.square())
    ]
    count = sums[0].clamp_min(1)
    return Cells((sums[0] / x.shape[1]).unsqueeze(1), torch.stack([sums[1] / count, sums[2] / count], 1))


def seed(cells: Cells, components: int, generator: torch.Generator, *, floor: float) -> Components:
    r"""Start from ``components`` cells drawn by k-means++, each cell given to the nearest one.

    The first is drawn by its mass, the next by mass times squared distance to the nearest one drawn before: distances
    in :math:`\mathrm{asinh}(x)` of each dimension, or the values far out in a tail would draw them all.
    Source: Arthur and Vassilvitskii, SODA 2007.
    """
    x = cells.features[:, : cells.features.shape[1] // 2].asinh()
    return maximize(cells, _nearest(x, _spread(x, cells.mass, components, generator)), floor=floor, min_weight=0.0)


def k_means(cells: Cells, components: int, generator: torch.Generator, *, floor: float) -> Components:
    """Start from k-means: k-means++ and 20 of Lloyd's steps, with plain distances, in which a tail counts for much.

    Source: Lloyd 1982, IEEE Trans. Inf. Theory 28.
    """
    x = cells.features[:, : cells.features.shape[1] // 2]
    nearest = _nearest(x, _spread(x, cells.mass, components, generator))
    for _ in range(_LLOYD):
        nearest = _nearest(x, maximize(cells, nearest, floor=floor, min_weight=0.0).mean)
    return maximize(cells, nearest, floor=floor, min_weight=0.0)


def _spread(x: Tensor, mass: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Draw centers (G, K, P) among x (G, P, M) by k-means++."""
    dims = x.shape[1]
    among = scattered(x.shape[2], _MOST_SEEDS, x.device)
    mass, some = mass[:, 0, among], x[:, :, among]
    odds, centers = mass, []
    for _ in range(components):
        pick = _draw(odds, generator)
        centers.append(some.gather(2, pick.view(-1, 1, 1).expand(-1, dims, 1)))
        far = torch.stack([(some - center).square().sum(1) for center in centers]).amin(0)
        odds = torch.where((mass * far).sum(1, keepdim=True) > 0, mass * far, mass)
    return torch.cat(centers, 2).mT


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Give each cell wholly to the center nearest to it, (G, K, M)."""
    distance = torch.stack([(x - center.unsqueeze(2)).square().sum(1) for center in centers.unbind(1)], 1)
    return torch.zeros_like(distance).scatter_(1, distance.argmin(1, keepdim=True), 1.0)


def scattered(length: int, most: int, device: torch.device) -> Tensor:
    """Return indices that cover ``length`` evenly and irregularly, all or about ``most`` of them.

    Multiples of the golden section: a stride would meet periodic data, as the pixels of images are, in one phase.
    """
    if length <= most:
        return torch.arange(length, device=device)
    places = torch.arange(most, device=device, dtype=torch.float64) * ((math.sqrt(5) - 1) / 2)
    return (places.frac() * length).long()


def _draw(odds: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one index for each row (G, M), with these odds: the first of M exponential clocks to ring."""
    uniform = torch.rand(odds.shape, generator=generator, device=generator.device, dtype=torch.float64)
    clocks = -uniform.to(odds.device).clamp_min(_TINY).log()
    return torch.where(odds > 0, clocks / odds, math.inf).argmin(1)


def climb(
    cells: Cells, components: Components, *, steps: int, tolerance: float, floor: float, min_weight: float
) -> Climb:
    r"""Take EM steps until the bound moves by less than ``tolerance`` in one, or ``steps`` are done.

    The bound is :math:`\sum_b m_b \ln\sum_k \lambda_k \exp E_b[\ln N(x; \mu_k, \sigma_k^2)]`, below the
    log-likelihood a value by what one posterior for a cell loses (Jensen), and equal to it for cells of one value. No
    step lowers it, but for components that are dropped.

    Args:
        cells: the data.
        components: where to start.
        steps: at most as many.
        tolerance: nats a value.
        floor: no variance falls below it.
        min_weight: a component of a smaller weight is dropped for good.
    """
    ended = Components(*(part.clone() for part in components))
    bound = torch.full_like(cells.mass[:, 0, 0], -math.inf)
    taken, done = torch.zeros_like(bound, dtype=torch.long), torch.zeros_like(bound, dtype=torch.bool)
    going, rest, now, last = torch.arange(len(bound), device=bound.device), cells, components, bound
    for _ in range(steps):
        r, reached = _expect(rest, now)
        now = maximize(rest, r, floor=floor, min_weight=min_weight)
        taken[going] += 1
        ready = (reached - last).abs() < tolerance
        last = reached
        if bool(ready.any()):  # the others go on among themselves
            _keep(ended, now, going)
            done[going[ready]] = True
            going, rest, now, last = going[~ready], rest.at(~ready), now.at(~ready), last[~ready]
        if not len(going):
            break
    _keep(ended, now, going)
    return Climb(ended, _expect(cells, ended)[1], taken, done)


def _keep(ended: Components, now: Components, going: Tensor) -> None:
    for whole, part in zip(ended, now, strict=True):
        whole[going] = part


def _expect(cells: Cells, components: Components) -> tuple[Tensor, Tensor]:
    """Return the posteriors (G, K, M) and the bound (G,)."""
    weight, mean, var = components
    precision = var.reciprocal()
    constant = (mean.square() * precision + var.log() + math.log(2 * math.pi)).sum(2, keepdim=True)
    slopes = torch.cat([mean * precision, -0.5 * precision], 2)
    joint = (weight.log() - 0.5 * constant).addcmul(slopes[:, :, :1], cells.features[:, None, 0])
    for dim in range(1, slopes.shape[2]):
        joint = joint.addcmul_(slopes[:, :, dim : dim + 1], cells.features[:, None, dim])
    top = joint.amax(1, keepdim=True)
    odds = joint.sub_(top).exp_()
    total = odds.sum(1, keepdim=True)
    return odds.div_(total), ((total.log() + top) * cells.mass).sum((1, 2))


def maximize(cells: Cells, r: Tensor, *, floor: float, min_weight: float) -> Components:
    """Return weights, means and variances given the posteriors ``r`` (G, K, M), which are overwritten."""
    owned = r.mul_(cells.mass)
    total = owned.sum(2, keepdim=True)
    averages = (owned @ cells.features.mT) / total.clamp_min(_TINY)
    mean, square = averages.chunk(2, 2)
    weight = torch.where(total >= max(min_weight, _TINY), total, 0.0)
    return Components(weight / weight.sum(1, keepdim=True), mean, (square - mean.square()).clamp_min(floor))
