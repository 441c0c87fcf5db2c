"""Mixtures of Gaussians with diagonal covariance, fitted to the activations of one batch by EM.

Points are shaped ``(G, P, M)``: ``G`` independent problems of ``M`` points in ``P`` dimensions, so that one posterior
for all channels is ``(1, C, M)`` and one for each channel ``(C, 1, M)``. Everything is a pure function in elementary
operations, without randomness, right in every derivative mode; what shall be a constant the caller detaches.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Mixture",
    "component_moments",
    "fit_responsibilities",
    "match",
    "posterior",
    "prune",
    "slices",
    "standardize_by_mixture",
]

_FLOOR = 1e-6  # smallest variance of a component during EM, where the variance of all points is 1
_POWER_STEPS = 4
_KEEP = 1e-3  # by how much another order of components must be better to be taken: ties are kept as they are


class Mixture(NamedTuple):
    """``G`` mixtures of ``K`` components: weights ``(G, K, 1)``, means and biased variances ``(G, K, P)``.

    A component of weight 0 is dead: it has no mean, no variance and no points.
    """

    weight: Tensor
    mean: Tensor
    var: Tensor


def fit_responsibilities(points: Tensor, components: int, *, iterations: int, min_weight: float) -> Tensor:
    """Fit a mixture by EM and return ``r_ik = p(k | x_i)`` under it, ``(G, K, M)``; they sum to one over ``k``.

    Each iteration takes ``lambda_k, m_k, s_k^2`` from the responsibilities, drops components below ``min_weight`` and
    takes new responsibilities. It starts from :func:`slices`. Cost: four passes over the points per iteration.

    Args:
        points: ``(G, P, M)``, every dimension of mean 0 and variance 1 (or 0 where it is constant).
        components: ``K``.
        iterations: EM steps.
        min_weight: components of a smaller weight are dropped for good, those left share the points.
    """
    features, r = _features(points), slices(points, components)
    for _ in range(iterations):
        r = _expect(features, _maximize(features, r), min_weight)
    return r


def posterior(points: Tensor, mixture: Mixture) -> Tensor:
    """Return ``r_ik = p(k | x_i) = lambda_k N(x_i; m_k, s_k^2) / p(x_i)``, ``(G, K, M)``.

    Valid where the points are of order 1: the exponent is taken from ``x`` and ``x^2``, two matrix products.
    """
    least = torch.finfo(points.dtype).tiny
    return _expect(_features(points), mixture._replace(var=mixture.var.clamp_min(_FLOOR)), least)


def slices(points: Tensor, components: int) -> Tensor:
    """Cut the points softly into ``K`` slices across their longest axis: the responsibilities EM starts from.

    A point at ``t`` standard deviations along the axis belongs to slice ``k`` by the posterior of ``K`` equal Gaussians
    at the ``(k + 1/2) / K`` quantiles of a normal distribution. The axis comes from four steps of the power method. No
    randomness and no choice of single points, as k-means++ has: the same batch in another order, or in another dtype,
    starts alike.
    """
    t = _scores_along_the_longest_axis(points)
    levels = (torch.arange(components, device=t.device, dtype=t.dtype) + 0.5) / components
    centers: Tensor = torch.special.ndtri(levels).unsqueeze(1)
    within = 1 - centers.square().mean()
    distance = (t - centers).square() / (2 * within)
    return (-distance).softmax(dim=1)


def _scores_along_the_longest_axis(points: Tensor) -> Tensor:
    # Of no simple symmetry, so that it is orthogonal to no axis the data may have.
    start = torch.arange(points.shape[1], device=points.device, dtype=points.dtype).cos()
    direction = start.expand(points.shape[0], 1, -1)
    for _ in range(_POWER_STEPS):
        direction = _unit((direction @ points) @ points.mT)
    return _unit(direction @ points) * math.sqrt(points.shape[2])


def _unit(vectors: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    return vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)


def _features(points: Tensor) -> tuple[Tensor, Tensor]:
    return points, points * points


def _expect(features: tuple[Tensor, Tensor], mixture: Mixture, min_weight: float) -> Tensor:
    """Return the responsibilities, to which it does not matter what the weights sum to. Small operations are dear."""
    least = max(min_weight, torch.finfo(mixture.weight.dtype).tiny)
    log_weight = torch.where(mixture.weight >= min_weight, mixture.weight.clamp_min(least).log(), -math.inf)
    precision = mixture.var.reciprocal()
    slope = mixture.mean * precision
    constant = torch.addcmul(mixture.var.log(), mixture.mean, slope).sum(2, keepdim=True)
    linear = torch.baddbmm(torch.sub(log_weight, constant, alpha=0.5), slope, features[0])
    return torch.baddbmm(linear, precision, features[1], alpha=-0.5).softmax(dim=1)


def _maximize(features: tuple[Tensor, Tensor], r: Tensor) -> Mixture:
    total = r.sum(2, keepdim=True)
    share = r / total.clamp_min(torch.finfo(r.dtype).tiny)
    mean, square = (share @ values.mT for values in features)
    return Mixture(total / r.shape[2], mean, torch.addcmul(square, mean, mean, value=-1).clamp_min(_FLOOR))


def prune(mixture: Mixture, min_weight: float) -> Mixture:
    """Give components below ``min_weight`` weight 0 and scale the other weights to sum to one."""
    weight = torch.where(mixture.weight >= min_weight, mixture.weight, 0.0)
    return mixture._replace(weight=weight / weight.sum(1, keepdim=True))


def component_moments(points: Tensor, r: Tensor) -> Mixture:
    """Weight, mean and biased variance of each component given the responsibilities, in two passes.

    ``lambda_k = mean_i r_ik``, ``m_k = sum_i nu_ik x_i``, ``s_k^2 = sum_i nu_ik (x_i - m_k)^2``, with
    ``nu_ik = r_ik / sum_j r_jk``. In one pass, by ``E[x^2] - m^2``, a component narrower than its distance from the
    center by ``1e-4`` would lose all digits of its variance in float32: so the value is taken in two passes, and only
    its derivatives, which two passes would make three times as dear in memory, come from the one.
    """
    total = r.sum(2, keepdim=True)
    share = r / torch.where(total > 0, total, 1.0)
    mean = share @ points.mT
    one_pass = share @ (points * points).mT - mean.square()
    value = _variance_in_two_passes(points.detach(), share.detach(), mean.detach())
    return Mixture(total / r.shape[2], mean, value + (one_pass - one_pass.detach()))


def _variance_in_two_passes(points: Tensor, share: Tensor, mean: Tensor) -> Tensor:
    components = zip(share.unbind(1), mean.unbind(1), strict=True)
    parts = [(points - m.unsqueeze(2)).square() @ nu.unsqueeze(2) for nu, m in components]
    return torch.cat(parts, dim=2).mT


def standardize_by_mixture(points: Tensor, r: Tensor, mixture: Mixture, eps: float) -> Tensor:
    """Return ``sum_k r_ik / sqrt(lambda_k) (x_i - m_k) / sqrt(s_k^2 + eps)``, ``(G, P, M)``.

    The mean blocks of the mixture's Fisher vector, summed. Where responsibilities are hard and ``eps=0`` the result has
    mean 0 and variance ``K``.
    """
    alive = mixture.weight > 0  # a dead component has no points; its gain only must be finite
    weight, var = torch.where(alive, mixture.weight, 1.0), torch.where(alive, mixture.var + eps, 1.0)
    gain = (weight * var).rsqrt()
    return torch.baddbmm(points * (gain.mT @ r), (gain * mixture.mean).mT, r, alpha=-1)


def match(fitted: Mixture, running: Mixture, var: Tensor) -> Mixture:
    """Put the components of ``fitted`` into the order that is nearest to ``running``.

    The order minimizes ``sum_k sum_p (m_k - m'_k)^2 / var_p`` over all ``K!`` orders, for each of the ``G`` problems by
    itself; components of weight 0 fit anywhere. Without it the average over batches mixes components that only happen
    to carry the same number.

    Args:
        fitted: mixture of the batch.
        running: mixture that gives the order.
        var: ``(G, P, 1)`` variance of all points, the unit of distance in each dimension.
    """
    count = fitted.mean.shape[1]
    orders = torch.tensor(list(permutations(range(count))), device=var.device)
    gap = (fitted.mean.unsqueeze(2) - running.mean.unsqueeze(1)).square() / var.mT.unsqueeze(2)
    cost = torch.where(fitted.weight > 0, gap.sum(3), 0.0)
    total = cost[:, orders, torch.arange(count, device=var.device)].sum(2)
    as_it_is, others = total[:, :1] * (1 - _KEEP), total[:, 1:]
    best = orders[torch.cat([as_it_is, others], dim=1).argmin(1)].unsqueeze(2)
    return Mixture(*(part.gather(1, best.expand_as(part)) for part in fitted))
