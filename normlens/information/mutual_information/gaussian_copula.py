"""Mutual information of two variables joined by a Gaussian copula."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information.samples import Array, most_ties, pair_of, ties_allowed

__all__ = ["TIES", "gaussian_copula"]

TIES = 3  # equal values at most, in samples of any size, without an atom


def gaussian_copula(x: Tensor, y: Tensor) -> Estimate:
    r"""Return :math:`-\tfrac12\ln(1-\hat\rho^2)` in nats, with the correlation of the normal scores.

    It is the mutual information where the ranks are joined as those of a bivariate Gaussian, and unchanged by any
    increasing map. Elsewhere it is an index of monotone dependence: of a gated Gaussian it gives less than the truth.

    Args:
        x: (N,).
        y: (N,).

    Returns:
        The information; its error is :math:`\sqrt{\hat\rho^2/N + 1/(2N^2)}` (delta method). ``converged`` is False
        where x or y has an atom (a value that occurs more than three times and in more than one sample of a
        hundred): it is no estimate there.

    Raises:
        ValueError: shapes that differ, or values that are not finite.

    Source: the efficiency of normal scores, Klaassen and Wellner, Bernoulli, 1997.
    """
    left, right = pair_of(x, y)
    n = len(left)
    u, v = _scores(left), _scores(right)
    norms = math.sqrt(float(u @ u) * float(v @ v))
    correlation = float(u @ v) / norms if norms > 0 else 0.0  # a constant tells nothing
    rest = 1 - correlation**2
    value = -0.5 * math.log(rest) if rest > np.finfo(np.float64).eps * n else math.inf
    error = math.sqrt(correlation**2 / n + 1 / (2 * n**2)) if math.isfinite(value) else math.nan
    return Estimate(value, error, n, max(most_ties(left)[1], most_ties(right)[1]) <= ties_allowed(n, TIES))


def _scores(values: Array) -> Array:
    """Return centered normal scores; equal values share the mean of their ranks."""
    scores = ndtri((rankdata(values) - 0.5) / len(values))
    return np.asarray(scores - scores.mean())
