"""Maximum mean discrepancy of two histograms under a Gaussian kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.divergence.common import mean_estimate
from normlens.information.histogram import Histogram

__all__ = ["mmd", "mmd_of"]


def mmd(h1: Histogram, h2: Histogram, *, bandwidth: float = 1.0) -> Estimate:
    r"""Squared maximum mean discrepancy :math:`E k(X,X') + E k(Y,Y') - 2 E k(X,Y)`, unbiased, averaged over channels.

    With :math:`k(x,y) = \exp(-(x-y)^2/2b^2)`, values in the middle of their bins. Around zero where nothing moved, and
    below it in half of the cases; the estimate's error is its spread *there*, from the null distribution's variance

    .. math:: 2\Big(\frac1n + \frac1m\Big)^2 \sum_{ij} p_i p_j \tilde k_{ij}^2

    with the centered kernel and both samples together as p; :func:`null_floor` gives its quantiles. NaN where a value
    is not finite.
    Source: Gretton et al. 2012, JMLR 13, lemma 6 (the estimate) and theorem 12 (the null).

    Args:
        h1: of the one sample, at least two values.
        h2: of the other, on the same grid.
        bandwidth: b in units of twice the grid's scale, the standard deviation for :meth:`AsinhGrid.around`.

    Raises:
        ValueError: the grids differ.
    """
    return mean_estimate(*mmd_of(h1, h2, bandwidth=bandwidth), h1, h2)


def mmd_of(h1: Histogram, h2: Histogram, *, bandwidth: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return each channel's :func:`mmd` and its spread under the null, (C,) and (C,) float64; it raises the same."""
    h1.check(h2)
    values, spreads = zip(*(_of_channel(h1, h2, channel, bandwidth) for channel in range(len(h1.zeros))), strict=True)
    finite = h1.nonfinite + h2.nonfinite == 0
    found, errors = (torch.where(finite, torch.stack(numbers), torch.nan) for numbers in (values, spreads))
    return found, errors


def _of_channel(h1: Histogram, h2: Histogram, channel: int, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return the discrepancy of one channel and its spread under the null; only occupied bins take part."""
    edges = h1.grid.edges[channel]
    places = torch.cat([(edges[1:] + edges[:-1]) / 2, edges.new_zeros(1)])
    a, b = (torch.cat([h.counts[channel], h.zeros[channel, None]]).double() for h in (h1, h2))
    used = a + b > 0
    x, a, b = places[used], a[used], b[used]
    distance = (x[:, None] - x) / (2 * bandwidth * h1.grid.scale[channel])
    kernel = (-distance.square() / 2).exp()
    n, m = a.sum(), b.sum()
    within = (a @ kernel @ a - n) / (n * (n - 1)) + (b @ kernel @ b - m) / (m * (m - 1))
    value = within - 2 * (a @ kernel @ b) / (n * m)
    p = (a + b) / (n + m)
    rows = kernel @ p
    centered = kernel - rows[:, None] - rows + p @ rows
    return value, (2 * (p @ centered.square() @ p)).sqrt() * (1 / n + 1 / m)
