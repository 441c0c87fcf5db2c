"""Predictive entropy: how unsure a stochastic network is, and which part of it is its own noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PredictiveEntropy", "entropy_of_samples"]


class PredictiveEntropy(NamedTuple):
    """Entropies in nats, one of each for every example.

    Attributes:
        total: ``H[mean_t p_t]``, of the prediction averaged over the passes, between 0 and ``log(classes)``.
        expected: ``mean_t H[p_t]``, what a single pass is unsure of.
        mutual_information: ``total - expected >= 0`` (Jensen), between class and noise; 0 where nothing is random.
    """

    total: Tensor
    expected: Tensor
    mutual_information: Tensor


def entropy_of_samples(probabilities: Tensor) -> PredictiveEntropy:
    """Take apart the entropy of a prediction that is averaged over stochastic passes.

    ``H[p] = -sum_k p_k log p_k``; ``total = H[mean_t p_t]``, ``expected = mean_t H[p_t]``.

    Shapes: ``(T, ..., K)``, passes first and classes last, to ``(...)`` each; in nats.

    Valid for any number of passes: ``total`` and ``mutual_information`` of few passes are too small on average, by up
    to about ``(K - 1) / (2 T)`` nats.

    Source: Dutta et al., Nature Communications 13, 2022, doi:10.1038/s41467-022-30305-8, for the use on rotated digits;
    the decomposition is the chain rule of entropy.

    Args:
        probabilities: non-negative, summing to 1 over the last dimension.

    Raises:
        ValueError: fewer than two dimensions, no pass, or rows that are no probabilities.
    """
    wide = probabilities.to(torch.float64)
    if wide.dim() < 2 or len(wide) < 1:
        raise ValueError(
            f"entropy_of_samples needs (passes, ..., classes) with at least one pass; got {tuple(wide.shape)}; "
            "stack the softmax outputs of the passes along a first dimension"
        )
    tolerance = 1e3 * torch.finfo(probabilities.dtype).eps
    if not bool(((wide.sum(-1) - 1).abs() <= tolerance).all()) or bool((wide < 0).any()):
        sums = wide.sum(-1)
        raise ValueError(
            "entropy_of_samples needs probabilities, non-negative and summing to 1 over the last dimension; got sums "
            f"from {float(sums.min()):.4g} to {float(sums.max()):.4g}, the smallest {float(wide.min()):.4g}; "
            "apply a softmax first"
        )
    total, expected = _entropy(wide.mean(0)), _entropy(wide).mean(0)
    return PredictiveEntropy(total, expected, total - expected)


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy
