"""A training that is interrupted, saved without a pickle, and taken up again in a fresh process's objects."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normlens.optim.transform import Transform

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}

Build = Callable[[], tuple[nn.Module, torch.optim.Optimizer, Transform]]
Step = Callable[[nn.Module, torch.optim.Optimizer, Transform, int], None]


def after_resuming(build: Build, step: Step, *, before: int = 3, after: int = 3) -> dict[str, Tensor]:
    """Train, save everything, load it into new objects, train on; return the state of the model."""
    model, optimizer, transform = build()
    for index in range(before):
        step(model, optimizer, transform, index)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "sgd": optimizer.state_dict(), "own": transform.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model, optimizer, transform = build()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["sgd"])
    transform.load_state_dict(saved["own"])
    for index in range(before, before + after):
        step(model, optimizer, transform, index)
    return model.state_dict()


def without_a_break(build: Build, step: Step, *, steps: int = 6) -> dict[str, Tensor]:
    """Train as long in one go."""
    model, optimizer, transform = build()
    for index in range(steps):
        step(model, optimizer, transform, index)
    return model.state_dict()


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_parameters(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter normal numbers over the root of its fan-in, in float64; the global state is left alone."""
    generator = make_generator(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return model
