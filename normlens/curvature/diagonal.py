"""Diagonal: and Frobenius norm of a matrix that is known by its products, with standard errors."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from normlens.curvature.operator import LinearOperator
from normlens.curvature.trace import rademacher_products
from normlens.estimate import Estimate

__all__ = ["diagonal", "frobenius_norm"]


def diagonal(
    operator: LinearOperator, *, matvecs: int = 100, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Estimate the diagonal of a symmetric matrix from products with random signs, entry by entry.

    .. math:: d_i = \frac{1}{m} \sum_k \omega_{ki} (A \omega_k)_i, \qquad
              \mathrm{Var}\, d_i = \frac{1}{m} \sum_{j \ne i} A_{ij}^2

    Where ``matvecs`` is at least n the diagonal is formed exactly from n products.

    Args:
        operator: A.
        matvecs: m, how many products.
        generator: of the random signs; by default a fresh one with seed 0.

    Returns:
        The diagonal and its standard errors plus rounding, both (n,) in float64 on the operator's device.

    Raises:
        ValueError: ``matvecs`` is below 2, or a product is not finite.

    Source: Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix" (2007); with signs its
    denominator is m.
    """
    _check(matvecs)
    rounding = torch.finfo(operator.dtype).eps
    if matvecs >= operator.shape[0]:
        exact = operator.dense().diagonal().double()
        return exact, rounding * exact.abs()
    mean, spread, size = torch.zeros(3, operator.shape[0], dtype=torch.float64, device=operator.device)
    draws = itertools.islice(rademacher_products(operator, generator), matvecs)
    for count, (signs, product) in enumerate(draws, 1):
        step = signs * product - mean
        mean = mean + step / count
        spread = spread + step * (signs * product - mean)
        size = size + (product.abs() - size) / count
    return mean, (spread / (matvecs - 1) / matvecs).sqrt() + rounding * size


def frobenius_norm(
    operator: LinearOperator, *, matvecs: int = 100, generator: torch.Generator | None = None
) -> Estimate:
    r"""Estimate the root of the sum of squared entries, which is that of the squared eigenvalues.

    .. math:: \|A\|_F^2 = \mathbb{E}\, \|A\omega\|^2, \qquad
              \mathrm{se}(\|A\|_F) = \mathrm{se}(\|A\|_F^2) / (2 \|A\|_F)

    Where ``matvecs`` is at least n the norm is formed exactly from n products. Valid where the relative error is well
    below one, as the delta method is of first order.

    Args:
        operator: A.
        matvecs: how many products.
        generator: of the random signs; by default a fresh one with seed 0.

    Returns:
        The norm, its standard error plus rounding, and the products spent.

    Raises:
        ValueError: ``matvecs`` is below 2, or a product is not finite.

    Source: Hutchinson (1989), applied to the square of A.
    """
    _check(matvecs)
    n, rounding = operator.shape[0], float(torch.finfo(operator.dtype).eps)
    if matvecs >= n:
        norm = float(operator.dense().double().norm())
        return Estimate(norm, rounding * norm, n)
    draws = itertools.islice(rademacher_products(operator, generator), matvecs)
    squares = torch.stack([product.square().sum() for _, product in draws])
    norm = math.sqrt(float(squares.mean()))
    error = float(squares.std()) / math.sqrt(matvecs) / (2 * norm) if norm else 0.0
    return Estimate(norm, error + rounding * norm, matvecs)


def _check(matvecs: int) -> None:
    if matvecs < 2:
        raise ValueError(f"a standard error needs matvecs of at least 2; got {matvecs}")
