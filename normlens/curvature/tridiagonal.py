"""Tridiagonalize: k steps of the Lanczos process with full reorthogonalization, for quadrature."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.curvature.operator import LinearOperator

__all__ = ["tridiagonalize"]


def tridiagonalize(operator: LinearOperator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    r"""Reduce a symmetric matrix to tridiagonal form on the Krylov space of a vector.

    .. math:: A Q = Q T + \beta_m q_{m+1} e_m^\top, \qquad Q^\top Q = I, \quad Q e_1 = v/\|v\|

    Every new vector is orthogonalized against all earlier ones, twice ("twice is enough", Kahan and Parlett), in
    float64 whatever the operator's dtype. The process ends early where the Krylov space closes: a coupling below
    :math:`10 \sqrt n\,\varepsilon \|T\|`, :math:`\varepsilon` that of the operator's dtype, is set to zero, and every
    eigenvalue of T is then one of A. Memory: (steps, n) in float64.

    Args:
        operator: A, symmetric.
        start: (n,), not zero.
        steps: how many products at most; no more than n are made.

    Returns:
        The diagonal of T, (m,), and the couplings :math:`\beta_1 \dots \beta_m`, (m,), both float64: the first m - 1
        are the off-diagonal of T, the last one leads out of the space and is zero if it is closed.

    Raises:
        ValueError: ``steps`` is below 1, ``start`` is zero or does not fit, or a product is not finite.

    Source: Golub and Meurant, "Matrices, Moments and Quadrature with Applications" (2010), section 4.1.
    """
    n = operator.shape[0]
    _check(start, steps, n)
    vector = start.to(operator.device, torch.float64)
    basis = torch.zeros(min(steps, n), n, dtype=torch.float64, device=operator.device)
    alphas, betas, scale, residual = [], [], 0.0, vector / vector.norm()
    for step in range(len(basis)):
        basis[step] = residual / residual.norm()
        product = operator @ basis[step]
        alpha = float(basis[step] @ product)
        residual = _orthogonalize(product, basis[: step + 1])
        beta = float(residual.norm())
        _check_finite(alpha + beta, step)
        scale = max(scale, abs(alpha) + beta)
        closed = step + 1 == n or beta <= 10 * n**0.5 * torch.finfo(operator.dtype).eps * scale
        alphas.append(alpha)
        betas.append(0.0 if closed else beta)
        if closed:
            break
    return torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64)


def _orthogonalize(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _check(start: Tensor, steps: int, n: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if start.shape != (n,) or not bool(start.any()):
        raise ValueError(f"start must be a vector of shape ({n},) that is not zero; got shape {tuple(start.shape)}")


def _check_finite(value: float, step: int) -> None:
    if not abs(value) < float("inf"):
        raise ValueError(f"products must be finite; product {step + 1} holds NaN or Inf: check the loss and its inputs")
