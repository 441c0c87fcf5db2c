"""Samples as the estimators take them: float64 on the CPU, without -0.0, atoms told from continuous values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

__all__ = [
    "CONTINUOUS",
    "Array",
    "Labels",
    "frequent_values",
    "labels_of",
    "most_ties",
    "normal_scores",
    "pair_of",
    "rounded",
    "ties_allowed",
]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

CONTINUOUS = 0  # the label of a value that is no atom; atom number i has the label i + 1


def pair_of(x: Tensor, y: Tensor) -> tuple[Array, Array]:
    """Return two variables of N values each in float64, -0.0 as 0.0 (dropout makes it: ``x * mask``).

    Raises:
        ValueError: a shape other than (N,) twice with N > 1, or values that are not finite.
    """
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must both have shape (N,) with N > 1; got {shapes}; pass one channel of each")
    left, right = (v.detach().cpu().double().numpy() + 0.0 for v in (x, y))
    bad = int((~np.isfinite(left) | ~np.isfinite(right)).sum())
    if bad:
        raise ValueError(f"x and y must be finite; {bad} of {len(left)} pairs are not; leave these pairs out")
    return left, right


def ties_allowed(samples: int, k: int) -> int:
    """Return how often a value may occur that is no atom: k times, or once in a hundred samples.

    Among k + 1 equal values the distance to the k-th neighbor is zero. Values that rounding made equal (half precision)
    are set in random order: that leaves the information as it is, as it would for a rare atom.
    """
    return max(k, samples // 100)


def frequent_values(values: Array, k: int) -> Array:
    """Return the values that occur more often than :func:`ties_allowed`, ascending."""
    distinct, counts = np.unique(values, return_counts=True)
    return np.asarray(distinct[counts > ties_allowed(len(values), k)])


def most_ties(values: Array) -> tuple[float, int]:
    """Return the most frequent value and how often it occurs."""
    distinct, counts = np.unique(values, return_counts=True)
    return float(distinct[counts.argmax()]), int(counts.max())


def labels_of(values: Array, atoms: Sequence[float] | Array) -> Labels:
    """Return :data:`CONTINUOUS` for every value that is no atom, and 1 + the atom's rank among them for the others."""
    ascending = np.unique(np.asarray(atoms, dtype=np.float64) + 0.0)
    if ascending.size == 0:
        return np.zeros(len(values), dtype=np.int64)
    place = np.searchsorted(ascending, values).clip(max=ascending.size - 1)
    return np.where(ascending[place] == values, place + 1, CONTINUOUS)


def normal_scores(values: Array, ties: np.random.Generator) -> Array:
    r"""Return :math:`\Phi^{-1}((\mathrm{rank} + 1/2) / N)`, ranks from 0, equal values in random order.

    Mutual information does not change under it, while neighbors of heavy-tailed values come as near as others.
    """
    ranks = np.empty(len(values))
    ranks[np.lexsort((ties.random(len(values)), values))] = np.arange(len(values))
    return np.asarray(ndtri((ranks + 0.5) / len(values)))


def rounded(atoms: Sequence[float], like: Tensor) -> Array:
    """Return named atoms as the tensor's own precision holds them: -0.7 is another number in float32."""
    return np.asarray(torch.tensor(atoms, dtype=like.dtype).double().numpy())
