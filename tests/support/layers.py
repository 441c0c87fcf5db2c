"""What the contracts of ``normlens.nn`` share: every layer found by walking the package, and ways to call it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlens import catalog

CHANNELS = 4
SHAPES = [(6, CHANNELS), (3, CHANNELS, 3), (3, CHANNELS, 3, 2), (2, CHANNELS, 3, 2, 2)]
NAMES = catalog.names("normlens.nn")
Subject = tuple[str, dict[str, Any]]


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """The constructor's parameters without ``num_features``, ``device`` and ``dtype``."""
    parameters = inspect.signature(catalog.load("normlens.nn", name)).parameters
    return {key: p for key, p in parameters.items() if key not in {"num_features", "device", "dtype"}}


def variants() -> Iterator[Any]:
    """Every layer as it is from ``num_features`` alone, and once more with each of its switches flipped."""
    for name in NAMES:
        switches = {key: not p.default for key, p in settings_of(name).items() if isinstance(p.default, bool)}
        yield pytest.param((name, {}), id=name)
        for key, flipped in switches.items():
            yield pytest.param((name, {key: flipped}), id=f"{name}-{key}={flipped}", marks=pytest.mark.slow)


every_name = pytest.mark.parametrize("name", NAMES)
every_layer = pytest.mark.parametrize("subject", list(variants()))
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def build(subject: Subject, **placement: Any) -> nn.Module:
    name, settings = subject
    return catalog.load("normlens.nn", name)(CHANNELS, **settings, **placement)


def lived_in(
    subject: Subject, draw: Callable[..., Tensor], training: bool = True, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A layer that is no longer at its initial values: parameters perturbed, two batches seen."""
    layer = build(subject, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * draw(*parameter.shape, dtype=dtype)
        for _ in range(2):
            layer(draw(8, CHANNELS, 3, 3, dtype=dtype) * 2 + 1)
    return layer.train(training)


def seeded(layer: nn.Module, x: Tensor) -> Tensor:
    """One call that moves the layer's state; a layer that draws draws the same every time."""
    torch.manual_seed(0)
    return layer(x)


def evaluate(layer: nn.Module, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """One call from the state the layer is in, which stays as it is; one that draws draws the same every time."""
    torch.manual_seed(0)
    state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    return functional_call(copy.deepcopy(layer), {**state, **(parameters or dict(layer.named_parameters()))}, (x,))


def supports(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the layer takes that shape; when not, its refusal must name the layer and the shape that came."""
    x = torch.linspace(-1, 2, math.prod(shape), dtype=torch.float64).reshape(shape)
    try:
        copy.deepcopy(layer)(x)
    except ValueError as error:
        refusal = str(error)
    else:
        return True
    assert type(layer).__name__ in refusal
    assert str(shape) in refusal
    return False
