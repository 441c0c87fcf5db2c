"""The distribution of a layer's input at one step, how it is kept for later steps, and how far it is from theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from normlens.information.divergence.cumulative import both_of
from normlens.information.divergence.cumulative_floor import (
    effective_count,
    kolmogorov_smirnov_floor,
    wasserstein_floor,
)
from normlens.information.histogram import REACH, AsinhGrid, Histogram, strided
from normlens.run.probe import Readings
from normlens.run.reading import Reading

__all__ = ["Watched", "watch"]

_LEVEL = 0.99
_POOLED = 128


@dataclass(frozen=True)
class Watched:
    """Some channels of a layer at one step.

    Attributes:
        layer: its name.
        histogram: of the channels that are watched.
        scale: of the grid on which all channels together are counted.
        values: counted per channel.
        floors: for each channel the null floors of W1 and KS, (2, C).
        errors: for each channel the standard errors of W1 and KS, (2, C).
        std: of each channel, (C,).
    """

    layer: str
    histogram: Histogram
    scale: float
    values: int
    floors: Tensor
    errors: Tensor
    std: Tensor

    def state(self, *, stored: bool) -> Iterator[Reading]:
        """Yield the distribution itself: of all channels together, and of each as a reference for later steps."""
        h, about = self.histogram, {"layer": self.layer, "n": self.values}
        total = max(int(h.finite.sum()), 1)
        yield Reading("histogram", self._pooled(total), dims=("bin",), **about)  # type: ignore[arg-type]
        yield Reading("histogram_scale", self.scale, **about)  # type: ignore[arg-type]
        yield Reading("zeros", float(h.zeros.sum()) / total, **about)  # type: ignore[arg-type]
        lost = int(h.nonfinite.sum())
        yield Reading("nonfinite", lost / max(lost + int(h.finite.sum()), 1), **about)  # type: ignore[arg-type]
        counts = h.slots.cpu().numpy()
        small = counts.astype(np.uint16 if counts.max() < 2**16 else np.int64)
        ends = h.ends.cpu().numpy()
        yield Reading("counts", small, layer=self.layer, dims=("channel", "slot"), n=self.values, stored=stored)
        yield Reading("range", ends, layer=self.layer, dims=("end", "channel"), n=self.values, stored=stored)

    def drift(self, earlier: Readings, every: int, since: str) -> Iterator[Reading]:
        """Yield how far it is from an earlier step; nothing where that is unknown, nan where all was constant."""
        reference = recalled(earlier, self.layer, self.histogram.grid)
        if reference is None:
            return
        std = _tensor(earlier[self.layer, "std"].array[::every], self.std)
        usable = std != 0
        distances, gaps = (measure[0] for measure in both_of(self.histogram, reference))
        w1, ks = (distances / std)[usable].mean(), gaps[usable].mean()
        errors = ((self.errors[0] / std)[usable].mean(), self.errors[1][usable].mean())
        for name, value, error in zip(("w1", "ks"), (w1, ks), errors, strict=True):
            yield Reading(f"{name}_{since}", float(value), layer=self.layer, error=_known(error), n=self.values)

    def floor(self) -> Iterator[Reading]:
        """Yield what a fresh batch would show, averaged over the channels that are not constant."""
        usable = self.std != 0
        w1, ks = (self.floors[0] / self.std)[usable].mean(), self.floors[1][usable].mean()
        yield Reading("w1_floor", float(w1), layer=self.layer, n=self.values)
        yield Reading("ks_floor", float(ks), layer=self.layer, n=self.values)

    def _pooled(self, total: int) -> np.ndarray:
        """Shares of all finite values in 128 bins around zero, the zeros themselves left out, float32."""
        h = self.histogram
        steps = torch.linspace(-1, 1, _POOLED + 1, dtype=torch.float64, device=h.low.device) * math.asinh(REACH)
        edges = self.scale * steps.sinh()
        below = (h.cdf(edges) * h.finite[:, None]).nan_to_num(0.0) - h.zeros[:, None] * (edges >= 0)
        shares: np.ndarray = (below.sum(0).diff().clamp(min=0) / total).float().cpu().numpy()
        return shares


def watch(layer: str, samples: Tensor, mean: Tensor, std: Tensor, first: Readings, every: int, most: int) -> Watched:
    """Count the values of every so-maniest channel on the grid of the first measurement, or on one laid now.

    Args:
        layer: its name.
        samples: (samples, positions, channels).
        mean: of all channels now, (channels,).
        std: the same.
        first: what was read at first; empty if that is now.
        every: watch the first of so many channels.
        most: values of a channel at most.
    """
    part = strided(samples[..., ::every], most).to(std.device)  # where there is float64
    known = first.get((layer, "mean"))
    if known is not None and known.array.shape == tuple(mean.shape):
        center, spread = (_tensor(first[layer, name].array, std) for name in ("mean", "std"))
    else:
        center, spread = mean, std
    center, spread = center[::every], spread[::every]
    h = Histogram.of(part, AsinhGrid.around(center, spread))
    rms = float((center.square() + spread.square()).mean().sqrt())
    independent = effective_count(part, h).where(h.nonfinite == 0, math.nan)
    floors, errors = _chance(h, independent, std[::every], len(samples))
    usable = rms if math.isfinite(rms) and rms > 0 else 1.0
    return Watched(layer, h, usable / 2, part.shape[0] * part.shape[1], floors, errors, std[::every])


def recalled(earlier: Readings, layer: str, grid: AsinhGrid) -> Histogram | None:
    """Return a histogram as it was kept at an earlier step, None if it was not, or of another width."""
    counts, ends = (earlier.get((layer, name)) for name in ("counts", "range"))
    if counts is None or ends is None or len(counts.array) != len(grid.center):
        return None
    table = torch.from_numpy(counts.array.astype(np.int64)).to(grid.center.device)
    return Histogram.from_slots(grid, table, _tensor(ends.array, grid.center))


def _chance(h: Histogram, independent: Tensor, std: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Floors and standard errors of W1 and KS: two batches of so many independent values, Student's tails for few."""
    tail = stats.t.ppf((1 + _LEVEL) / 2, samples - 1) / stats.norm.ppf((1 + _LEVEL) / 2) if samples > 1 else math.nan
    floors = [wasserstein_floor(h, independent, independent), kolmogorov_smirnov_floor(independent, independent)]
    spread = (2 / independent).sqrt()
    return tail * torch.stack(floors), torch.stack([std * spread, spread / 2])


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like)


def _known(error: Tensor) -> float:
    return float(error) if math.isfinite(float(error)) else math.nan
