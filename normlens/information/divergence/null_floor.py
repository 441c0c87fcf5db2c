"""null_floor: what a divergence of two histograms reaches by chance alone, by permutation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.histogram import Histogram

__all__ = ["null_floor"]


def null_floor(
    divergence: Callable[[Histogram, Histogram], Estimate],
    h1: Histogram,
    h2: Histogram,
    *,
    level: float = 0.99,
    draws: int = 199,
    seed: int = 0,
) -> Estimate:
    r"""Return what a divergence exceeds with probability 1 - ``level`` at most when the values are dealt out anew.

    Both samples are thrown together and dealt out again in their sizes, each channel on its own; of the divergences the
    :math:`\lceil \mathrm{level}\,(\mathrm{draws} + 1)\rceil`-th smallest is the floor. For independent values of one
    channel the level is exact, whatever the distribution: both samples are then exchangeable. Of several channels the
    average is exact where they are independent, and too low where they move together. The error is the standard error
    of the quantile, from its neighbors among the draws; it costs ``draws`` evaluations of the divergence.
    Source: Hoeffding 1952, Ann. Math. Statist. 23 (permutation tests).

    Args:
        divergence: of two histograms, e.g. :func:`wasserstein` or :func:`mmd`.
        h1: of the one sample.
        h2: of the other, on the same grid.
        level: in (0, 1).
        draws: at least ``level / (1 - level)``, 99 for the 99 % point.
        seed: of the dealing.

    Raises:
        ValueError: the grids differ, or the draws are too few for the level.
    """
    h1.check(h2)
    rank = math.ceil(level * (draws + 1))
    if not 0 < level < 1 or rank > draws:
        raise ValueError(
            f"null_floor needs a level in (0, 1) and at least level / (1 - level) draws; got {level} and {draws}; "
            "99 draws do for level=0.99"
        )
    generator = np.random.default_rng(seed)
    pooled = h1.merge(h2)
    table = torch.cat([pooled.counts, pooled.zeros[:, None]], 1).cpu().numpy()
    values = sorted(float(divergence(*_dealt(generator, table, h1, pooled))) for _ in range(draws))
    if any(map(math.isnan, values)):
        return Estimate(math.nan, cost=float(draws))
    step = math.sqrt(draws * level * (1 - level))
    below, above = (values[min(max(round(rank - 1 + side * step), 0), draws - 1)] for side in (-1, 1))
    return Estimate(values[rank - 1], error=(above - below) / 2, cost=float(draws))


def _dealt(
    generator: np.random.Generator, table: np.ndarray, first: Histogram, pooled: Histogram
) -> tuple[Histogram, Histogram]:
    """Deal the values of the table, one row for each channel, into two samples."""
    sizes = first.finite.tolist()
    drawn = np.stack([generator.multivariate_hypergeometric(row, size) for row, size in zip(table, sizes, strict=True)])
    parts = (torch.from_numpy(part).to(pooled.counts) for part in (drawn, table - drawn))
    one, other = (_with(pooled, part) for part in parts)
    return one, other


def _with(pooled: Histogram, table: Tensor) -> Histogram:
    return replace(pooled, counts=table[:, :-1], zeros=table[:, -1])
