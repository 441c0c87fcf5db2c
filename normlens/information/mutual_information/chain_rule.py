"""The chain rule of mutual information over the atoms of two variables, one term per sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normlens.estimate import Estimate
from normlens.information.mutual_information.neighbors import ksg_terms, ross_terms
from normlens.information.mutual_information.samples import (
    CONTINUOUS,
    Array,
    Labels,
    most_ties,
    normal_scores,
    ties_allowed,
)
from normlens.information.mutual_information.table import count, error_of

__all__ = ["Terms", "chain_terms"]

_ALONE = 0.01  # the part of the samples that may be without a neighbor to measure a distance to

Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Terms:
    """The information at each sample.

    Attributes:
        pointwise: (n,); their mean is the plug-in estimate.
        correction: of the bias, to be added to the mean.
        degrees: of freedom of the table of atoms.
        trusted: whether table and neighbors were there in numbers.
    """

    pointwise: Array
    correction: float
    degrees: int
    trusted: bool

    def estimate(self, samples: int) -> Estimate:
        """Return the estimate for ``samples`` samples of which those beyond n tell nothing."""
        n = len(self.pointwise)
        everyone = np.concatenate([self.pointwise, np.zeros(samples - n)])
        value = float(everyone.mean()) + self.correction * n / samples
        return Estimate(value, error_of(float(everyone.var()), self.degrees, samples), samples, self.trusted)


def chain_terms(x: Array, y: Array, a: Labels, b: Labels, *, k: int, seed: int) -> Terms:
    """Return the terms for n samples; a and b label the atoms of x and of y.

    Raises:
        ValueError: k < 1, or a value that is no atom occurs more than k times and in more than one sample of a
            hundred.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}; 3 is usual")
    table = count(a, b)
    pointwise, alone = table.pointwise.copy(), 0
    for rows, terms in _continuous_terms(x, y, a, b, k, np.random.default_rng(seed)):
        unknown = np.isnan(terms)
        alone += int(unknown.sum())
        # A sample without neighbors takes the mean of the others, and zero where there are none.
        pointwise[rows] += np.where(unknown, 0.0 if unknown.all() else np.nanmean(terms), terms)
    return Terms(pointwise, table.correction, table.degrees, table.dense and alone <= _ALONE * len(x))


def _continuous_terms(
    x: Array, y: Array, a: Labels, b: Labels, k: int, ties: np.random.Generator
) -> Iterator[tuple[Rows, Array]]:
    """Yield the rows and the terms of I(A;Y|B=c), I(X;B|A=c) and I(X;Y|A=B=c)."""
    allowed = ties_allowed(len(x), k)
    for labels, values, rows in ((a, y, b == CONTINUOUS), (b, x, a == CONTINUOUS)):
        if rows.any():
            yield rows, ross_terms(labels[rows], normal_scores(_without_atoms(values[rows], allowed), ties), k)
    rows = (a == CONTINUOUS) & (b == CONTINUOUS)
    if rows.sum() > k:
        yield rows, ksg_terms(normal_scores(x[rows], ties), normal_scores(y[rows], ties), k)
    elif rows.any():
        yield rows, np.full(int(rows.sum()), np.nan)


def _without_atoms(values: Array, allowed: int) -> Array:
    value, times = most_ties(values)
    if times > allowed:
        raise ValueError(
            f"values that are not named as atoms may occur at most {allowed} times; {value:g} occurs {times} times; "
            "name it among the atoms, or pass atoms=None"
        )
    return values
