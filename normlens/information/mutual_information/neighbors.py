"""Nearest-neighbor estimators of mutual information, one term per sample: their mean is the estimate.

The terms are estimates of the pointwise information, so that their spread gives the standard error.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from normlens.information.mutual_information.samples import Array, Labels

__all__ = ["distance_to_neighbor", "ksg_terms", "ross_terms"]

_INSIDE = 1 - 1e-10  # of the radius: the k-th neighbor itself is not inside, whatever the rounding


def ksg_terms(x: Array, y: Array, k: int) -> Array:
    r"""Return :math:`\psi(k) + \psi(N) - \psi(n_x + 1) - \psi(n_y + 1)` for each of N points.

    :math:`n_x` counts the other points strictly nearer along x than the k-th neighbor in the plane is (largest
    coordinate difference); x and y without ties.

    Source: Kraskov, Stögbauer and Grassberger, "Estimating mutual information", 2004, the first estimator.
    """
    points = np.column_stack([x, y])
    radius = cKDTree(points).query(points, k=[k + 1], p=np.inf)[0][:, 0]
    counts = (_inside(np.sort(along), along, radius) for along in (x, y))
    return np.asarray(digamma(k) + digamma(len(x)) - sum(digamma(count) for count in counts))


def ross_terms(labels: Labels, y: Array, k: int) -> Array:
    r"""Return :math:`\psi(N) - \psi(N_a) + \psi(k_a) - \psi(m)` for each of N points; nan for one alone in its class.

    :math:`N_a` counts the point's class, m the points of any class within the distance of the k-th neighbor in the
    class (itself not counted), :math:`k_a = \min(k, N_a - 1)`; y without ties.

    Source: Ross, "Mutual information between discrete and continuous data sets", PLoS ONE, 2014.
    """
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    size = sizes[place]
    accompanied = size > 1
    everyone = np.sort(y[accompanied])
    terms = np.full(len(y), np.nan)
    for index, count in enumerate(sizes):
        if count > 1:
            members = np.flatnonzero(place == index)
            members = members[np.argsort(y[members])]
            near = min(k, int(count) - 1)
            inside = _inside(everyone, y[members], distance_to_neighbor(y[members], near))
            terms[members] = digamma(len(everyone)) - digamma(count) + digamma(near) - digamma(inside)
    return terms


def distance_to_neighbor(ascending: Array, k: int) -> Array:
    """Return each value's distance to its k-th neighbor: the k nearest lie beside each other in the order."""
    padded = np.concatenate([np.full(k, -np.inf), ascending, np.full(k, np.inf)])
    n = len(ascending)
    spans = [np.maximum(ascending - padded[k - j :][:n], padded[2 * k - j :][:n] - ascending) for j in range(k + 1)]
    return np.asarray(np.min(spans, axis=0))


def _inside(ascending: Array, centers: Array, radius: Array) -> Array:
    """Count the values strictly nearer to each center than its radius; the center itself is one of them."""
    reach = radius * _INSIDE
    return np.asarray(
        np.searchsorted(ascending, centers + reach, "right") - np.searchsorted(ascending, centers - reach)
    )
