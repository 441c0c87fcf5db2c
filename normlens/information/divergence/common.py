"""What all divergences share: one number for many channels, and counts as shares."""

from __future__ import annotations

from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.histogram import Histogram

__all__ = ["mean_estimate"]


def mean_estimate(values: Tensor, errors: Tensor, h1: Histogram, h2: Histogram) -> Estimate:
    """Average over the channels; its bound is the average of theirs, its cost the values that were counted."""
    cost = float(h1.finite.sum() + h2.finite.sum())
    return Estimate(float(values.mean()), error=float(errors.mean()), cost=cost)
