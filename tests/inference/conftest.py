"""Draws from a seed, and a small network with every kind of treated place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from support.fingerprint import fingerprint


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """``draw(*shape, seed=0)``: float64 normal numbers."""

    def normal(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return normal


@pytest.fixture
def settle() -> Callable[..., nn.Module]:
    """``settle(model, seed=0)``: the model in float64 eval mode, its parameters and running statistics drawn anew."""

    def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.double().parameters():
                parameter.normal_(generator=generator)
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    buffer.normal_(generator=generator)
                    if not name.endswith("mean"):
                        buffer.abs_().add_(0.5)
        return model.eval()

    return drawn


@pytest.fixture
def state_of() -> Callable[[nn.Module], object]:
    """``state_of(model)``: all that a block may not change."""
    return fingerprint
