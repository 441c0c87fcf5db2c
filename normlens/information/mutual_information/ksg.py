"""Mutual information of two continuous variables by nearest neighbors."""

from __future__ import annotations

import math

import numpy as np
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information.neighbors import ksg_terms
from normlens.information.mutual_information.samples import Array, most_ties, normal_scores, pair_of

__all__ = ["ksg"]


def ksg(x: Tensor, y: Tensor, *, k: int = 3, seed: int = 0) -> Estimate:
    r"""Return the mutual information in nats of two continuous variables, scikit-learn's estimate on normal scores.

    .. math:: \psi(k) + \psi(N) - \langle \psi(n_x + 1) + \psi(n_y + 1) \rangle

    with :math:`n_x` and :math:`n_y` the points strictly nearer along one axis than the k-th neighbor in the plane.
    Ranks turned into normal scores do not change the information and take the bias of heavy tails away.

    scikit-learn clamps the estimate at zero: of independent variables it reports about +0.4 standard errors in the
    mean, so compare it with :func:`permutation_null`. :func:`hurdle` does not clamp and is the same otherwise.

    Args:
        x: (N,), without a value that occurs more than k times.
        y: (N,), likewise.
        k: the number of the neighbor whose distance is taken.
        seed: of scikit-learn's jitter and of the order of equal values.

    Returns:
        The information; its error is the standard deviation of the terms per sample over the root of N.

    Raises:
        ValueError: shapes that differ, values that are not finite, ties beyond k (an atom, which jitter only
            hides), or k outside [1, N).

    Source: Kraskov, Stögbauer and Grassberger, "Estimating mutual information", 2004 (cond-mat/0305641).
    """
    left, right = pair_of(x, y)
    if not 1 <= k < len(left):
        raise ValueError(f"k must be at least 1 and below the number of samples, {len(left)}; got {k}; 3 is usual")
    _refuse_atoms("x", left, k)
    _refuse_atoms("y", right, k)
    ties = np.random.default_rng(seed)
    u, v = normal_scores(left, ties), normal_scores(right, ties)
    found = mutual_info_regression(u[:, None], v, discrete_features=False, n_neighbors=k, random_state=seed)
    return Estimate(float(found[0]), float(ksg_terms(u, v, k).std()) / math.sqrt(len(u)), len(u))


def _refuse_atoms(name: str, values: Array, k: int) -> None:
    value, times = most_ties(values)
    if times > k:
        raise ValueError(
            f"nearest neighbors need continuous values, none more than k = {k} times; {name} holds {value:g} "
            f"{times} times; use hurdle, which takes atoms"
        )
