"""Dense second derivatives by a route of their own: double backward, one basis vector after the other, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def dense_hessian(model: nn.Module, loss, x, y) -> Tensor:
    """Return the Hessian over the trainable parameters, each of which must be a leaf of its own."""
    theta = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters() if p.requires_grad}
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    with sdpa_kernel(SDPBackend.MATH):
        value = loss(functional_call(model, {**theta, **buffers}, (x,)), y)
    leaves = list(theta.values())
    gradient = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = []
    for entry in flat:
        if not entry.requires_grad:
            rows.append(torch.zeros_like(flat).detach())
            continue
        row = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in row]))
    return torch.stack(rows).detach()


def dense_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobian of all outputs, (N * C, n), one backward pass for each row."""
    theta = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters() if p.requires_grad}
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    outputs = functional_call(model, {**theta, **buffers}, (x,)).reshape(-1)
    leaves, rows = list(theta.values()), []
    for entry in outputs:
        row = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in row]))
    return torch.stack(rows).detach()


def vector(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(measured: Tensor, expected: Tensor) -> float:
    return float((measured.double() - expected.double()).norm() / expected.double().norm())
