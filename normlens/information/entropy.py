"""Entropy in nats: of counts, of Gaussian and of continuous samples, and of a gated variable."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import digamma, polygamma
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.mutual_information.neighbors import distance_to_neighbor
from normlens.information.mutual_information.samples import most_ties, pair_of

__all__ = ["binary", "discrete", "gated", "gaussian", "kozachenko_leonenko"]


def discrete(probabilities: Tensor, *, samples: int | None = None) -> Estimate:
    r"""Return the entropy of a discrete variable in nats, :math:`-\sum p_a\ln p_a`.

    With ``samples`` the probabilities were counted: Miller and Madow's :math:`(m-1)/(2N)` with the number m of
    occupied values is added, and the error is that of the mean of :math:`-\ln p` over N samples.

    Args:
        probabilities: of any shape, probabilities or counts; they are divided by their sum.
        samples: the number N they were counted from; None for an exact distribution.

    Raises:
        ValueError: a negative or non-finite entry, or the sum zero.

    Source: Miller, "Note on the bias of information estimates", 1955.
    """
    p = probabilities.detach().cpu().double().numpy().ravel()
    if not (p >= 0).all() or not 0 < p.sum() < math.inf:
        raise ValueError(f"probabilities must be finite and >= 0, not all zero; got the sum {p.sum():g}")
    p = p[p > 0] / p.sum()
    surprise = -np.log(p)
    value = float(p @ surprise)
    if samples is None:
        return Estimate(value, 0.0, 0.0)
    error = math.sqrt(float(p @ (surprise - value) ** 2) / samples)
    return Estimate(value + (len(p) - 1) / (2 * samples), error, samples)


def gaussian(x: Tensor) -> Estimate:
    r"""Return the differential entropy of a Gaussian variable in nats, :math:`\tfrac12\ln(2\pi e\sigma^2)`.

    From the sample variance, without bias: N times the biased one is a chi-square of N - 1 degrees of freedom times
    the true one, and both the mean and the variance of its logarithm are known. Of any other variable with this
    variance it is an upper bound.

    Args:
        x: (N,); minus infinity for a constant.

    Raises:
        ValueError: the shape is not (N,) with N > 1, or values are not finite.

    Source: Misra, Singh and Demchuk, Journal of Multivariate Analysis, 2005.
    """
    values = pair_of(x, x)[0]
    n, variance = len(values), float(values.var())
    if variance == 0:
        return Estimate(-math.inf, cost=n)
    bias = 0.5 * (float(digamma((n - 1) / 2)) - math.log(n / 2))
    value = 0.5 * math.log(2 * math.pi * math.e * variance) - bias
    return Estimate(value, 0.5 * math.sqrt(float(polygamma(1, (n - 1) / 2))), n)


def kozachenko_leonenko(x: Tensor, *, k: int = 3) -> Estimate:
    r"""Return the differential entropy of a continuous variable in nats, from distances between neighbors.

    .. math:: \psi(N) - \psi(k) + \ln 2 + \langle\ln\epsilon_i\rangle

    with the distance :math:`\epsilon_i` of sample i to its k-th neighbor; the error is the standard deviation of the
    terms over the root of N.

    Args:
        x: (N,), without a value that occurs more than k times.
        k: the number of the neighbor.

    Raises:
        ValueError: the shape is not (N,) with N > 1, values that are not finite, ties beyond k, or k outside [1, N).

    Source: Kozachenko and Leonenko, 1987; Kraskov, Stögbauer and Grassberger, 2004, equation 20.
    """
    values = np.sort(pair_of(x, x)[0])
    value, times = most_ties(values)
    if not 1 <= k < len(values):
        raise ValueError(f"k must be at least 1 and below the number of samples, {len(values)}; got {k}; 3 is usual")
    if times > k:
        raise ValueError(
            f"the entropy of an atom is no differential one: none of the values may occur more than k = {k} times; "
            f"{value:g} occurs {times} times; leave it out, and count it with discrete"
        )
    terms = digamma(len(values)) - digamma(k) + math.log(2) + np.log(distance_to_neighbor(values, k))
    return Estimate(float(terms.mean()), float(terms.std()) / math.sqrt(len(values)), len(values))


def binary(probability: float) -> float:
    r"""Return the entropy of a coin in nats, :math:`H_b(p) = -p\ln p - (1-p)\ln(1-p)`.

    Raises:
        ValueError: the probability is not within [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability must be within [0, 1]; got {probability}")
    return -sum(p * math.log(p) for p in (probability, 1 - probability) if p > 0)


def gated(entropy: float, keep_prob: float) -> float:
    r"""Return the entropy in nats of a discrete variable behind a gate, :math:`pH + H_b(p)`.

    The gate is independent and open with probability p, and closed it gives zero. Exact where the variable has no atom
    at zero, an upper bound where it has (a zero of its own and a closed gate look alike). It does not hold for
    differential entropies.

    Args:
        entropy: of the variable before the gate.
        keep_prob: the probability p to be kept, not to be dropped.

    Source: Chen et al., "Rethinking the Usage of Batch Normalization and Dropout", arXiv:1905.05928, 2019.
    """
    return keep_prob * entropy + binary(keep_prob)
