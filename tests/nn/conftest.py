"""Data and derivatives for the tests of layers: seeded, in float64 unless told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp


@pytest.fixture(scope="session", autouse=True)
def _jvp_is_loaded() -> None:
    """PyTorch 2.13 calls its own deprecated ``torch.jit.script`` once, when the first jvp loads its decompositions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script`", category=DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """``draw(2, 3)``: normal numbers of that shape, the same ones in every run."""
    generator = torch.Generator().manual_seed(20)
    return lambda *shape, dtype=torch.float64: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def double_backward() -> Callable[..., list[Tensor]]:
    """``double_backward(loss, arguments, vectors)``: Hessian-vector product by autograd twice."""

    def product(loss: Callable[..., Tensor], at: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in at]
        gradient = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        products = torch.autograd.grad(gradient, leaves, v, allow_unused=True)
        return [torch.zeros_like(t) if p is None else p for p, t in zip(products, leaves, strict=True)]

    return product


@pytest.fixture
def forward_over_reverse() -> Callable[..., list[Tensor]]:
    """``forward_over_reverse(loss, arguments, vectors)``: Hessian-vector product by ``jvp(grad)``."""

    def product(loss: Callable[..., Tensor], at: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> Any:
        return list(jvp(grad(loss, argnums=tuple(range(len(at)))), at, v)[1])

    return product


@pytest.fixture
def central_difference() -> Callable[..., list[Tensor]]:
    """``central_difference(loss, arguments, vectors)``: Hessian-vector product from two gradients, good to 1e-8."""

    def product(loss: Callable[..., Tensor], at: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> list[Tensor]:
        step = torch.finfo(torch.float64).eps ** (1 / 3)

        def gradient(sign: float) -> tuple[Tensor, ...]:
            leaves = [(t + sign * step * u).detach().requires_grad_() for t, u in zip(at, v, strict=True)]
            return torch.autograd.grad(loss(*leaves), leaves)

        return [(p - m) / (2 * step) for p, m in zip(gradient(1), gradient(-1), strict=True)]

    return product
