"""A model, its data and how it is trained: what a fault is planted into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlens import models
from normlens.data.digits import digits
from normlens.data.images import ImageData
from normlens.models.normalization import Norm
from normlens.run.probe import Probe
from normlens.typing import Loss

__all__ = ["HELD_OUT", "SEEN", "Architecture", "Patient", "build", "patient"]

Architecture = Literal["mlp", "cnn", "resnet", "rnn", "transformer"]

SEEN: tuple[Architecture, ...] = ("mlp", "cnn")
"""On runs of these the thresholds of the rules were set."""

HELD_OUT: tuple[Architecture, ...] = ("resnet", "rnn", "transformer")
"""No run of these was looked at while a threshold was set."""


@dataclass
class Patient:
    """One training run to be.

    Attributes:
        model: in train mode.
        optimizer: of its parameters.
        inputs: the training images.
        targets: their classes.
        batch_size: images in a step.
        steps: how many.
        loss: what is minimized, and what the probes are told.
        after_step: done after each optimizer step, told its number.
        budget: of the lens.
        extra: probes beside those that every run has.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    batch_size: int = 64
    steps: int = 200
    loss: Loss = cross_entropy
    after_step: Callable[[int], None] | None = None
    budget: float | None = None
    extra: tuple[Probe, ...] = ()


@cache
def images() -> ImageData:
    return digits()


def build(architecture: Architecture, norm: Norm, seed: int, *, wide: bool = False) -> nn.Module:
    """Make a small network; ``wide`` has twice the channels."""
    shape, factor = images().shape, 2 if wide else 1
    common = {"norm": norm, "seed": seed}
    if architecture == "mlp":
        return models.MLP(shape, 10, widths=(48 * factor,) * 3, **common)
    if architecture == "cnn":
        return models.CNN(shape, 10, widths=(12 * factor,) * 3, **common)
    if architecture == "resnet":
        return models.ResNet(shape, 10, depth=8, widths=(8 * factor, 8 * factor, 16 * factor), **common)
    if architecture == "rnn":
        return models.RNN(shape, 10, units=24 * factor, **common)
    return models.Transformer(shape, 10, width=16 * factor, heads=2, **common)


def patient(
    architecture: Architecture,
    norm: Norm,
    seed: int,
    *,
    model: nn.Module | None = None,
    lr: float = 0.05,
    momentum: float = 0.9,
    decay: float = 5e-4,
) -> Patient:
    """Make a run with nothing wrong: SGD with momentum and weight decay on the digits."""
    model = build(architecture, norm, seed) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    return Patient(model, optimizer, *images().train)
