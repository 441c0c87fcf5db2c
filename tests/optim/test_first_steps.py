"""The first steps of PyTorch's own optimizers against their closed forms: what the transforms are built around."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

LR = 0.01


def first_step(make, gradient: Tensor, *, steps: int = 1) -> Tensor:
    """Return by how much a parameter has moved after steps with one and the same gradient."""
    parameter = nn.Parameter(torch.zeros_like(gradient))
    optimizer = make([parameter])
    for _ in range(steps):
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.fixture
def gradient() -> Tensor:
    return torch.tensor([3.0, -0.02, 1e3, -7.0], dtype=torch.float64)


def test_momentum_begins_with_a_gradient_step_and_adds_up(gradient: Tensor):
    sgd = lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9)  # noqa: E731
    torch.testing.assert_close(first_step(sgd, gradient), -LR * gradient, rtol=1e-15, atol=0)
    torch.testing.assert_close(first_step(sgd, gradient, steps=2), -LR * (1 + 1.9) * gradient, rtol=1e-14, atol=0)


def test_adagrad_begins_with_the_sign(gradient: Tensor):
    """G = g^2, so the step is g / |g|; the second one g / (sqrt(2) |g|)."""
    adagrad = lambda p: torch.optim.Adagrad(p, lr=LR, eps=0.0)  # noqa: E731
    torch.testing.assert_close(first_step(adagrad, gradient), -LR * gradient.sign(), rtol=1e-14, atol=0)
    both = -LR * (1 + 2**-0.5) * gradient.sign()
    torch.testing.assert_close(first_step(adagrad, gradient, steps=2), both, rtol=1e-14, atol=0)


def test_rmsprop_begins_with_ten_times_the_sign(gradient: Tensor):
    """v = (1 - 0.99) g^2, so the step is g / (0.1 |g|)."""
    rmsprop = lambda p: torch.optim.RMSprop(p, lr=LR, alpha=0.99, eps=0.0)  # noqa: E731
    torch.testing.assert_close(first_step(rmsprop, gradient), -10 * LR * gradient.sign(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("adam", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_begins_with_the_sign_less_its_epsilon(adam, gradient: Tensor):
    """The bias corrections cancel: -eta g / (|g| + eps)."""
    step = first_step(lambda p: adam(p, lr=LR, eps=1e-8, weight_decay=0.0), gradient)
    torch.testing.assert_close(step, -LR * gradient / (gradient.abs() + 1e-8), rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
@pytest.mark.parametrize("steps", [1, 5])
def test_adam_does_not_see_the_scale_of_the_gradient(scale: float, steps: int, gradient: Tensor):
    adam = lambda p: torch.optim.Adam(p, lr=LR, eps=0.0)  # noqa: E731
    small, large = (first_step(adam, factor * gradient, steps=steps) for factor in (1.0, scale))
    torch.testing.assert_close(large, small, rtol=1e-13, atol=0)
