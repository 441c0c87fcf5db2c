"""How far an estimate may be from what more samples would say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.estimate import Estimate

__all__ = ["Interval", "interval"]

_PART = 4  # a subsample is one in so many
_NORMAL = 1.959964  # the 97.5 % point


@dataclass(frozen=True)
class Interval:
    """A 95 % interval for an estimate.

    Attributes:
        value: the estimate from all samples.
        lower: the value minus 1.96 errors.
        upper: the value plus 1.96 errors.
        error: one standard error.
        values: (repetitions,), the estimates from the subsamples.
    """

    value: float
    lower: float
    upper: float
    error: float
    values: Tensor


def interval(
    estimator: Callable[[Tensor, Tensor], Estimate],
    x: Tensor,
    y: Tensor,
    *,
    repetitions: int = 50,
    generator: torch.Generator,
) -> Interval:
    r"""Return a 95 % interval from the spread over subsamples of m = N/4 pairs drawn without replacement.

    .. math:: \mathrm{se} = \mathrm{sd}(\hat I_m)\sqrt{m / (N - m)}

    the jackknife that leaves N - m out (two subsamples of N share pairs: :math:`1/m - 1/N` instead of :math:`1/m`).
    A bootstrap would draw pairs twice, and nearest neighbors would take its ties for dependence. The interval says
    nothing about the estimator's bias.

    Args:
        estimator: of two tensors, e.g. ``hurdle``.
        x: (N, ...).
        y: (N, ...).
        repetitions: how many subsamples.
        generator: that draws them.

    Raises:
        ValueError: fewer than two repetitions, or x and y of different length.

    Source: the delete-d jackknife, Shao and Wu, Annals of Statistics, 1989.
    """
    if repetitions < 2 or len(x) != len(y):
        got = f"{repetitions} of {len(x)} and {len(y)} samples"
        raise ValueError(f"an interval needs at least two repetitions on as many x as y; got {got}")
    n, m, found = len(x), len(x) // _PART, []
    for _ in range(repetitions):
        drawn = torch.randperm(n, generator=generator, device=generator.device)[:m].to(x.device)
        found.append(estimator(x[drawn], y[drawn]).value)
    values, value = torch.tensor(found, dtype=torch.float64), estimator(x, y).value
    error = float(values.std()) * math.sqrt(m / (n - m))
    return Interval(value, value - _NORMAL * error, value + _NORMAL * error, error, values)
