"""Mutual information of several pairs of variables at once, kept sample by sample so that pairs can be pooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normlens.information.mutual_information.chain_rule import chain_terms
from normlens.information.mutual_information.samples import (
    CONTINUOUS,
    Array,
    Labels,
    frequent_values,
    labels_of,
    ties_allowed,
)

__all__ = [
    "Information", "Rows", "Variables", "pair_information", "pooled_ratio", "shuffled", "thinned",
]  # fmt: skip

Rows = NDArray[np.int64]

NEIGHBORS = 3
SPREAD = 1.3
"""What repeated samples spread over the spread of their terms: terms of neighbors hang together. Measured on normal
pairs, gated or not, of 256 to 1024 samples: 1.0 to 1.35."""

ENOUGH = 16  # samples below which nothing is estimated


@dataclass(frozen=True)
class Variables:
    """Several variables over the same N samples.

    Attributes:
        values: ``(variables, N)`` in float64.
        atoms: ``(variables, N)``, which atom each value sits on, 0 for none.
    """

    values: Array
    atoms: Labels

    @classmethod
    def of(cls, values: Tensor) -> Variables:
        """Take the values that occur more often than a neighbor is counted for atoms.

        Args:
            values: ``(variables, N)``.

        Raises:
            ValueError: values that are not finite.
        """
        if not bool(values.isfinite().all()):
            raise ValueError("activations must be finite for an information to exist; some are not: measure before")
        array = values.detach().cpu().double().numpy() + 0.0  # -0.0 as 0.0
        atoms = [labels_of(row, frequent_values(row, NEIGHBORS)) for row in array]
        return cls(array, np.array(atoms, dtype=np.int64).reshape(array.shape))

    @classmethod
    def of_labels(cls, labels: Tensor, times: int) -> Variables:
        """Take a class label for a variable that is nothing but atoms.

        Args:
            labels: ``(N,)``, whole numbers.
            times: how often, to make a pair with each of as many variables.
        """
        index = np.unique(labels.cpu().numpy(), return_inverse=True)[1].astype(np.int64)
        repeated = np.tile(index, (times, 1))
        return cls(repeated.astype(np.float64), repeated + 1 + CONTINUOUS)

    def gated(self, values: Tensor) -> Variables:
        """Return these variables behind gates: a closed one is the atom 0, and behind an open one atoms stay atoms.

        Told anew, those of few samples would be lost: behind the gates they are of fewer, and in front they are not.

        Args:
            values: ``(variables, N)`` behind the gates.

        Raises:
            ValueError: values that are not finite.
        """
        behind = Variables.of(values).values
        return Variables(behind, np.where(behind == 0, self.atoms.max(initial=0) + 1, self.atoms))

    def __getitem__(self, chosen: slice) -> Variables:
        """Return some of the variables."""
        return Variables(self.values[chosen], self.atoms[chosen])

    def at(self, rows: Rows) -> Variables:
        """Return each variable at samples of its own; atoms stay atoms.

        Args:
            rows: ``(variables, n)``, indices of samples.
        """
        return Variables(np.take_along_axis(self.values, rows, 1), np.take_along_axis(self.atoms, rows, 1))


@dataclass(frozen=True)
class Information:
    """Estimates for several pairs from the same N samples, in nats.

    Attributes:
        pointwise: ``(pairs, N)``, the information at each sample; the means are the estimates.
        trusted: ``(pairs,)``, whether samples and neighbors were there in numbers.
    """

    pointwise: Array
    trusted: NDArray[np.bool_]

    @property
    def values(self) -> Array:
        """The estimate of each pair, ``(pairs,)``."""
        return np.asarray(self.pointwise.mean(1))

    @property
    def errors(self) -> Array:
        """One standard error of each, ``(pairs,)``: the spread of the terms over the root of N."""
        return np.asarray(self.pointwise.std(1) / math.sqrt(self.pointwise.shape[1]))

    def pooled(self) -> tuple[float, float]:
        """Return the mean over the pairs and its standard error: samples are independent, pairs need not be."""
        if not self.pointwise.size:
            return math.nan, math.nan
        of_samples = self.pointwise.mean(0)
        return float(of_samples.mean()), float(SPREAD * of_samples.std() / math.sqrt(len(of_samples)))

    @staticmethod
    def mean(parts: Sequence[Information]) -> Information:
        """Average over draws made from the same samples: their number stays, since no new ones came in."""
        pointwise = np.mean([part.pointwise for part in parts], axis=0)
        return Information(pointwise, np.all([part.trusted for part in parts], axis=0))


def pair_information(x: Variables, y: Variables, *, seed: int) -> Information:
    """Return the information of each pair, by the chain rule over the atoms (``hurdle``).

    Args:
        x: of as many variables as there are pairs.
        y: as many.
        seed: of the order of equal values that are no atoms.
    """
    pairs = range(len(x.values))
    return _each([(x.values[i], y.values[i], x.atoms[i], y.atoms[i]) for i in pairs], x.values, seed)


def shuffled(like: Variables, generator: torch.Generator) -> Rows:
    """Return the samples in an order of its own for each variable.

    Args:
        like: the variables.
        generator: of the orders.
    """
    n = like.values.shape[1]
    orders = [torch.randperm(n, generator=generator, device=generator.device).cpu().numpy() for _ in like.values]
    return np.array(orders, dtype=np.int64).reshape(like.values.shape)


def thinned(estimate: Callable[[Rows], Information], orders: Rows, part: float) -> Information:
    """Average estimates from disjoint parts of the samples, each as large as what gates leave of them.

    Estimates by neighbors drift with the number of samples where a dependence is fine-grained (patches of images that
    occur again and again). Behind gates there are fewer samples to see it in, so before them as few must be taken.

    Args:
        estimate: from the rows of each pair ``(pairs, n)``.
        orders: of the samples, ``(pairs, N)``: see :func:`shuffled`.
        part: n / N.
    """
    size = orders.shape[1]
    n = max(1, round(part * size))
    found = []
    for start in range(0, size - n + 1, n):
        rows = orders[:, start : start + n]
        of_part = estimate(rows)
        mean = of_part.values[:, None]
        # What is not in the part stands at the mean, so that mean and standard error are those of the part.
        pointwise = np.repeat(mean, size, 1)
        np.put_along_axis(pointwise, rows, mean + (of_part.pointwise - mean) * (size / n), 1)
        found.append(Information(pointwise, of_part.trusted))
    return Information.mean(found)


def pooled_ratio(after: Information, before: Information) -> tuple[float, float]:
    r"""Return :math:`R = \sum_p \hat I_p^{\mathrm{after}} / \sum_p \hat I_p^{\mathrm{before}}` and its standard error.

    Of the ratios of single pairs those with a small denominator are noise; that of the sums is not. The error is that
    of :math:`\sum_p (a_{pn} - R\,b_{pn}) / \sum_p \hat I_p^{\mathrm{before}}` over the samples (delta method), so what
    moves both alike, the same samples, does not count. Both are nan where the denominator is within three of its own
    standard errors from zero.
    """
    denominator, error = before.pooled()
    if not denominator > 3 * error:
        return math.nan, math.nan
    ratio = after.pooled()[0] / denominator
    rest = (after.pointwise - ratio * before.pointwise).mean(0) / denominator
    return ratio, float(SPREAD * rest.std() / math.sqrt(len(rest)))


def _each(pairs: Sequence[tuple[Array, Array, Labels, Labels]], like: Array, seed: int) -> Information:
    """Return the terms of each pair; nan for all of them where there are too few samples to estimate anything."""
    if like.shape[1] < ENOUGH or not pairs:
        return Information(np.full(like.shape, np.nan), np.zeros(len(like), dtype=np.bool_))
    terms = [chain_terms(x, y, _all(x, a), _all(y, b), k=NEIGHBORS, seed=seed) for x, y, a, b in pairs]
    return Information(np.array([t.pointwise + t.correction for t in terms]), np.array([t.trusted for t in terms]))


def _all(values: Array, atoms: Labels) -> Labels:
    """Add what is frequent among these samples only, or was rounded to one value by a gate's factor."""
    free = values[atoms == CONTINUOUS]
    distinct, counts = np.unique(free, return_counts=True)
    more = distinct[counts > ties_allowed(len(values), NEIGHBORS)]
    if not len(more):
        return atoms
    added = labels_of(values, more)
    return np.where((atoms == CONTINUOUS) & (added != CONTINUOUS), added + atoms.max(initial=0), atoms)
