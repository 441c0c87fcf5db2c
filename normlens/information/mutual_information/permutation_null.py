"""What an estimator says of two variables that have nothing to do with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normlens.estimate import Estimate

__all__ = ["PermutationNull", "permutation_null"]


@dataclass(frozen=True)
class PermutationNull:
    """An estimator's values on shuffled pairs.

    Attributes:
        level: the 95 % quantile: an estimate below it tells no dependence.
        mean: the estimator's bias where there is none.
        values: (permutations,), ascending.
    """

    level: float
    mean: float
    values: Tensor


def permutation_null(
    estimator: Callable[[Tensor, Tensor], Estimate],
    x: Tensor,
    y: Tensor,
    *,
    permutations: int = 50,
    generator: torch.Generator,
) -> PermutationNull:
    r"""Return what the estimator makes of x and the shuffled y: both distributions stay, the dependence goes.

    The level is the :math:`\lceil .95 (P + 1) \rceil`-th of P ascending values, so that an estimate of independent
    variables lies above it with a probability of at most .05, whatever the estimator.

    Args:
        estimator: of two tensors, e.g. ``hurdle``.
        x: (N, ...).
        y: (N, ...).
        permutations: how many, at least 19.
        generator: of the permutations.

    Raises:
        ValueError: fewer than 19 permutations, or x and y of different length.

    Source: the permutation test, Phipson and Smyth, 2010.
    """
    if permutations < 19 or len(x) != len(y):
        got = f"{permutations} for {len(x)} and {len(y)} samples"
        raise ValueError(f"a 95 % level needs at least 19 permutations of as many x as y; got {got}")
    found = [estimator(x, y[_shuffle(len(y), generator).to(y.device)]).value for _ in range(permutations)]
    values = torch.tensor(found, dtype=torch.float64).sort().values
    rank = -(-95 * (permutations + 1) // 100)
    return PermutationNull(float(values[rank - 1]), float(values.mean()), values)


def _shuffle(n: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator, device=generator.device)
