"""Histogram: the distribution of many channels in bins that are fine around their middle and coarse far away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["AsinhGrid", "Histogram", "strided"]

BINS = 512
REACH = 2.0**11
"""Of a grid, in units of its scale on either side of its center; beyond it values are counted in the last bin."""

_SLOTS = BINS + 4  # and zeros, NaN, +Inf, -Inf
_WIDTH = 2 * math.asinh(REACH) / BINS
_MIDDLE = BINS / 2 + 0.5  # the center is in the middle of a bin: a constant channel does not flicker over an edge
_CHUNK = 1 << 16  # values binned at a time: what the processor caches hold


@dataclass(frozen=True, eq=False)
class AsinhGrid:
    r"""Bins of equal width in :math:`\operatorname{asinh}((x - c)/s)`, for each channel its own.

    Near the center they are :math:`2 s\,\operatorname{asinh}(2^{11})/512 = 0.0325\,s` wide, far away 3.2 % of the
    distance: with the scale of :meth:`around`, a sixtieth of a standard deviation. Histograms merge and compare only on
    one grid, so it is laid once, around the first values, and kept.

    Attributes:
        center: (C,), in units of the values.
        scale: (C,), in units of the values, positive and finite.

    Raises:
        ValueError: the shapes differ, or the numbers make no grid.
    """

    center: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        sound = self.center.ndim == 1 and self.center.shape == self.scale.shape
        if not sound or not bool((self.center.isfinite() & self.scale.isfinite() & (self.scale > 0)).all()):
            raise ValueError(
                "a grid needs a finite center and a positive, finite scale for each channel, both of shape (C,); got "
                f"center {tuple(self.center.shape)} and scale {tuple(self.scale.shape)}; see AsinhGrid.around"
            )

    @classmethod
    def around(cls, mean: Tensor, std: Tensor) -> AsinhGrid:
        r"""Lay a grid for values of that mean and standard deviation: center ``mean``, scale ``std / 2``.

        A channel that is constant takes the median of the other scales (1 if there are none), one that is not finite
        the center 0 as well. Zero falls on the edge of a bin where the center is within 2 ``std`` of it, so that
        rectified values share no bin with negative ones.

        Args:
            mean: (C,), of any device and dtype.
            std: (C,).
        """
        center = torch.where(mean.isfinite(), mean, 0.0).double()
        usable = std.isfinite() & (std > 0) & mean.isfinite()
        known = std[usable].double()
        fallback = known.median() if len(known) else torch.ones((), dtype=torch.float64, device=std.device)
        scale = torch.where(usable, std.double(), fallback) / 2
        whole = ((center / scale).asinh() / _WIDTH).floor()
        snapped = ((whole + 0.5) * _WIDTH).sinh() * scale
        return cls(torch.where((center / scale).abs() <= 4, snapped, center), scale)

    @property
    def edges(self) -> Tensor:
        """The borders of the bins, (C, 513), ascending."""
        steps = torch.arange(BINS + 1, dtype=torch.float64, device=self.center.device) - _MIDDLE
        return self.center[:, None] + self.scale[:, None] * (steps * _WIDTH).sinh()

    def index(self, values: Tensor) -> Tensor:
        """Return the bins that values (n, C) fall into, int32; NaN must not be among them."""
        z = (values - self.center.to(values.dtype)).div_(self.scale.to(values.dtype))
        # torch.asinh is no vector instruction: this takes a tenth of its time.
        u = z.square().add_(1).sqrt_().add_(z.abs()).log_().copysign_(z)
        return u.mul_(1 / _WIDTH).add_(_MIDDLE).clamp_(0, BINS - 0.5).int()

    def same(self, other: AsinhGrid) -> bool:
        """Say whether the bins of another grid are the same to the bit."""
        mine, theirs = (self.center, self.scale), (other.center, other.scale)
        return self is other or all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of each channel's values on an :class:`AsinhGrid`, all int64: merging is exact in any order.

    What is exactly zero, not a number or infinite has counters of its own and is in no bin. Within a bin values count
    as spread evenly.

    Attributes:
        grid: where the bins are.
        counts: (C, 512).
        zeros: (C,).
        nans: (C,).
        posinf: (C,).
        neginf: (C,).
        low: (C,), float64, the smallest finite value; +Inf if there is none.
        high: (C,), float64, the largest; -Inf if there is none.
    """

    grid: AsinhGrid
    counts: Tensor
    zeros: Tensor
    nans: Tensor
    posinf: Tensor
    neginf: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor, grid: AsinhGrid) -> Histogram:
        """Count values, the channels last: (N, C) or (samples, positions, C); one dimension alone is one channel.

        Half precision is binned in float32, float64 in float64.

        Args:
            values: as they are, NaN and Inf included; not changed.
            grid: of as many channels.

        Raises:
            ValueError: the grid has another number of channels.
        """
        flat = values.detach().reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
        if flat.shape[1] != len(grid.center):
            raise ValueError(f"values must have the grid's {len(grid.center)} channels last; got {tuple(values.shape)}")
        rows = max(1, _CHUNK // max(1, flat.shape[1]))
        made = torch.zeros(flat.shape[1], _SLOTS, dtype=torch.int64, device=flat.device)
        low = torch.full((flat.shape[1],), math.inf, dtype=torch.float64, device=flat.device)
        high = -low
        for chunk in torch.split(flat, rows) if len(flat) else ():
            slots, least, most = _slots(chunk.to(torch.promote_types(chunk.dtype, torch.float32)), grid)
            made += torch.bincount(slots.flatten(), minlength=made.numel()).view_as(made)
            low, high = torch.minimum(low, least.double()), torch.maximum(high, most.double())
        return cls.from_slots(grid, made, torch.stack([low, high]))

    @classmethod
    def from_slots(cls, grid: AsinhGrid, slots: Tensor, ends: Tensor) -> Histogram:
        """Make one of what :attr:`slots` and :attr:`ends` give, e.g. from a file.

        Args:
            grid: where the bins are.
            slots: (C, 516), int64: bins, zeros, NaN, +Inf, -Inf.
            ends: (2, C), the smallest and the largest finite value.
        """
        zeros, nans, posinf, neginf = slots[:, BINS:].unbind(1)
        return cls(grid, slots[:, :BINS], zeros, nans, posinf, neginf, ends[0], ends[1])

    @property
    def slots(self) -> Tensor:
        """All counts in one table, (C, 516)."""
        return torch.cat([self.counts, torch.stack([self.zeros, self.nans, self.posinf, self.neginf], 1)], 1)

    @property
    def ends(self) -> Tensor:
        """The smallest and the largest finite value, (2, C)."""
        return torch.stack([self.low, self.high])

    @property
    def finite(self) -> Tensor:
        """The number of finite values, (C,)."""
        return self.counts.sum(1) + self.zeros

    @property
    def nonfinite(self) -> Tensor:
        """The number of values that are NaN or infinite, (C,)."""
        return self.nans + self.posinf + self.neginf

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both, exactly.

        Raises:
            ValueError: the grids differ.
        """
        self.check(other)
        ends = torch.stack([torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)])
        return Histogram.from_slots(self.grid, self.slots + other.slots, ends)

    def check(self, other: Histogram) -> None:
        """Raise if the bins of another histogram are not the same.

        Raises:
            ValueError: the grids differ.
        """
        if not self.grid.same(other.grid):
            raise ValueError(
                "histograms must share one grid; these differ: make both by Histogram.of with the same grid"
            )

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        positions, (below,) = knots(self)
        return positions, below

    def cdf(self, points: Tensor) -> Tensor:
        """Return the share of each channel's finite values at or below points, (K,) or (C, K), as (C, K) float64."""
        positions, below = self._knots
        at = points.to(positions).expand(len(positions), points.shape[-1]).contiguous()
        right = torch.searchsorted(positions, at, right=True).clamp(1, positions.shape[1] - 1)
        (x0, x1), (f0, f1) = _either_side(positions, right), _either_side(below, right)
        share = ((at - x0) / (x1 - x0)).clamp(0, 1).nan_to_num(1.0)
        return f0 + share * (f1 - f0)

    def quantile(self, levels: Tensor) -> Tensor:
        """Return the values below which the given shares (K,) of each channel's finite values lie, (C, K) float64."""
        positions, below = self._knots
        at = levels.to(positions).expand(len(positions), len(levels)).contiguous()
        right = torch.searchsorted(below, at).clamp(1, positions.shape[1] - 1)
        (x0, x1), (f0, f1) = _either_side(positions, right), _either_side(below, right)
        found = x0 + ((at - f0) / (f1 - f0)).nan_to_num(0.0) * (x1 - x0)
        inside = torch.minimum(torch.maximum(found, self.low[:, None]), self.high[:, None])
        return torch.where(self.finite[:, None] > 0, inside, math.nan)


def strided(samples: Tensor, most: int = 4096) -> Tensor:
    """Take at most so many values of each channel of (samples, positions, channels), as a view of evenly spaced ones.

    The positions are thinned first, the same ones in every sample, with a stride that shares no factor with their
    number: on an image it does not stay in one column. Samples are thinned where there are more of them than ``most``.

    Args:
        samples: activations.
        most: values per channel to keep at most.
    """
    n, positions, _ = samples.shape
    stride = max(1, math.ceil(n * positions / most)) if n <= most else max(1, positions)
    while stride < positions and (math.gcd(stride, positions) > 1 or n * -(-positions // stride) > most):
        stride += 1
    return samples[:: max(1, math.ceil(n / most)), ::stride]


def knots(*histograms: Histogram) -> tuple[Tensor, list[Tensor]]:
    """Return where the distribution functions bend, (C, 515), and each one's value there: straight in between.

    These are the edges and, twice, zero: just below the atom there and with it. The outermost bins reach to the least
    and the largest value that any of the histograms has seen.
    """
    edges = histograms[0].grid.edges
    edges[:, 0] = torch.stack([edges[:, 0], *(h.low for h in histograms)]).amin(0)
    edges[:, -1] = torch.stack([edges[:, -1], *(h.high for h in histograms)]).amax(0)
    first = (edges < 0).sum(1, keepdim=True)  # the knot just below the atom
    order = torch.arange(BINS + 3, device=edges.device)
    old = (order - 2 * (order > first + 1).int()).clamp(max=BINS)
    zero = (order == first) | (order == first + 1)
    left, right = (first - 1).clamp(min=0), first.clamp(max=BINS)
    (x0, x1) = (edges.gather(1, at) for at in (left, right))
    share = (-x0 / (x1 - x0)).clamp(0, 1).nan_to_num(0.0)
    functions = []
    for h in histograms:
        below = torch.nn.functional.pad(h.counts.cumsum(1), (1, 0)).double()
        (f0, f1) = (below.gather(1, at) for at in (left, right))
        counted = torch.where(zero, f0 + share * (f1 - f0), below.gather(1, old))
        functions.append((counted + h.zeros[:, None] * (order > first)) / h.finite[:, None])
    return torch.where(zero, 0.0, edges.gather(1, old)), functions


def _slots(chunk: Tensor, grid: AsinhGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each value its place in the flat table (C, slots), and the extremes of what is finite."""
    low, high = chunk.amin(0), chunk.amax(0)  # NaN goes through both
    if bool((low.isfinite() & high.isfinite()).all()):
        slots = grid.index(chunk)
    else:
        finite = chunk.isfinite()
        low, high = chunk.where(finite, math.inf).amin(0), chunk.where(finite, -math.inf).amax(0)
        slots = grid.index(chunk.nan_to_num(0.0))
        for place, special in enumerate((chunk.isnan(), chunk == math.inf, chunk == -math.inf), start=BINS + 1):
            slots.masked_fill_(special, place)
    slots.masked_fill_(chunk == 0, BINS)
    offsets = torch.arange(chunk.shape[1], device=chunk.device, dtype=torch.int32) * _SLOTS
    return slots.add_(offsets), low, high


def _either_side(values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return values.gather(1, right - 1), values.gather(1, right)
