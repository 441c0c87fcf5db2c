"""Divergences of shares in cells of about equal mass: Jensen-Shannon and the population stability index."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.divergence.common import mean_estimate
from normlens.information.histogram import BINS, Histogram

__all__ = ["jensen_shannon", "jensen_shannon_floor", "jensen_shannon_of", "psi", "psi_floor", "psi_of"]


def jensen_shannon(h1: Histogram, h2: Histogram, *, cells: int = 16) -> Estimate:
    r"""Jensen-Shannon divergence :math:`\tfrac12\sum p\ln\tfrac{p}{m} + \tfrac12\sum q\ln\tfrac{q}{m}`, in nats.

    With :math:`m = (p+q)/2`, in [0, ln 2], over cells that hold equal shares of both samples together, as far as bins
    allow; averaged over the channels. The error is the standard error of multinomial counts, by the delta method: it
    vanishes where nothing moved, and :func:`jensen_shannon_floor` says what chance reaches. NaN where a value is not
    finite.
    Source: Lin 1991, IEEE Trans. Inf. Theory 37.

    Args:
        h1: of the one sample.
        h2: of the other, on the same grid.
        cells: at most so many; more resolve finer changes and raise the floor.

    Raises:
        ValueError: the grids differ.
    """
    return mean_estimate(*jensen_shannon_of(h1, h2, cells=cells), h1, h2)


def jensen_shannon_of(h1: Histogram, h2: Histogram, *, cells: int = 16) -> tuple[Tensor, Tensor]:
    """Return each channel's :func:`jensen_shannon` and its error, (C,) and (C,) float64; it raises the same."""
    counts = _cells(h1, h2, cells)
    p, q = (c / c.sum(1, keepdim=True) for c in counts)
    slopes = [(2 * a / (p + q)).log().nan_to_num(0.0, neginf=0.0) / 2 for a in (p, q)]
    return (p * slopes[0] + q * slopes[1]).sum(1), _error(counts, (p, q), slopes)


def psi(h1: Histogram, h2: Histogram, *, cells: int = 16) -> Estimate:
    r"""Population stability index :math:`\sum (p - q)\ln(p/q)`, in nats, averaged over the channels.

    The symmetrized Kullback-Leibler divergence, over cells that hold equal shares of both samples together; half a
    count is added to each cell, so that an empty one costs a finite price. The error is the standard error of
    multinomial counts, by the delta method: it vanishes where nothing moved (see :func:`psi_floor`), and is too large
    where one sample leaves cells empty. NaN where a value is not finite.
    Source: Jeffreys 1946, Proc. R. Soc. A 186 (the divergence).

    Args:
        h1: of the one sample.
        h2: of the other, on the same grid.
        cells: at most so many; ten are usual where this index is.

    Raises:
        ValueError: the grids differ.
    """
    return mean_estimate(*psi_of(h1, h2, cells=cells), h1, h2)


def psi_of(h1: Histogram, h2: Histogram, *, cells: int = 16) -> tuple[Tensor, Tensor]:
    """Return each channel's :func:`psi` and its error, (C,) and (C,) float64; it raises the same."""
    counts = _cells(h1, h2, cells)
    used = counts[0] + counts[1] > 0
    half = torch.where(used, 0.5, 0.0)
    p, q = ((c + half) / (c + half).sum(1, keepdim=True) for c in counts)
    log = torch.where(used, (p / q).log(), 0.0)
    slopes = [(log + 1 - q / p).nan_to_num(0.0), (1 - log - p / q).nan_to_num(0.0)]
    return ((p - q) * log).sum(1), _error(counts, (p, q), slopes)


def psi_floor(h1: Histogram, h2: Histogram, *, cells: int = 16, level: float = 0.99) -> Tensor:
    r"""Return what two samples of one distribution exceed with probability 1 - ``level``, for each channel, (C,).

    To second order PSI is :math:`(1/n + 1/m)\,\chi^2_{B-1}`, in the mean :math:`(B-1)(1/n + 1/m)`, with B the cells
    that are used. For independent values, at least five to a cell; NaN where a value is not finite.
    Source: Yurdakul 2018, Statistical properties of population stability index (thesis, Western Michigan University).

    Args:
        h1: of the one sample.
        h2: of the other, on the same grid.
        cells: as for :func:`psi`.
        level: in (0, 1).

    Raises:
        ValueError: the grids differ.
    """
    counts = _cells(h1, h2, cells)
    used = (counts[0] + counts[1] > 0).sum(1)
    quantiles = torch.as_tensor(stats.chi2.ppf(level, (used - 1).cpu().numpy())).to(used.device).nan_to_num(0.0)
    sizes = [c.sum(1) for c in counts]
    return quantiles * (1 / sizes[0] + 1 / sizes[1])


def jensen_shannon_floor(h1: Histogram, h2: Histogram, *, cells: int = 16, level: float = 0.99) -> Tensor:
    """Return the same for :func:`jensen_shannon`: an eighth of :func:`psi_floor`, which it is to second order.

    Args:
        h1: of the one sample.
        h2: of the other, on the same grid.
        cells: as for :func:`jensen_shannon`.
        level: in (0, 1).

    Raises:
        ValueError: the grids differ.
    """
    return psi_floor(h1, h2, cells=cells, level=level) / 8


def _cells(h1: Histogram, h2: Histogram, cells: int) -> list[Tensor]:
    """Return the counts of both in common cells, (C, cells) float64 each; nan for channels that are not finite.

    A bin goes as a whole where the middle of its ranks among both samples is, and so does the atom at zero.
    """
    h1.check(h2)
    bins = h1.counts + h2.counts
    zeros = (h1.zeros + h2.zeros)[:, None]
    below = h1.grid.edges < -1e-9 * h1.grid.scale[:, None]  # an edge laid on zero may be off it by a rounding
    after = torch.arange(BINS, device=bins.device) >= below.sum(1, keepdim=True)
    total = (bins.sum(1, keepdim=True) + zeros).double()
    middle = bins.cumsum(1) - bins / 2 + zeros * after
    middle_zero = (bins * ~after).sum(1, keepdim=True) + zeros / 2
    places = (torch.cat([middle, middle_zero], 1) / total * cells).nan_to_num(0.0).long().clamp(0, cells - 1)
    finite = (h1.nonfinite + h2.nonfinite == 0)[:, None]
    found = []
    for h in (h1, h2):
        values = torch.cat([h.counts, h.zeros[:, None]], 1).double()
        summed = torch.zeros(len(bins), cells, dtype=torch.float64, device=bins.device).scatter_add_(1, places, values)
        found.append(torch.where(finite, summed, torch.nan))
    return found


def _error(counts: list[Tensor], shares: tuple[Tensor, Tensor], slopes: list[Tensor]) -> Tensor:
    """Standard error of a function of two multinomial samples with these slopes in the shares."""
    variance = torch.zeros_like(counts[0][:, 0])
    for count, share, slope in zip(counts, shares, slopes, strict=True):
        spread = (share * slope.square()).sum(1) - (share * slope).sum(1).square()
        variance = variance + spread / count.sum(1)
    return variance.clamp(min=0).sqrt()
