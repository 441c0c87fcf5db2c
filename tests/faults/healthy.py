"""Ten healthy runs: other norms, optimizers, nonlinearities and sizes, each as a person would set it up.

And six of architectures that no threshold was set on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from faults import plant
from faults.patient import Architecture, Patient, build, patient
from normlens.models.normalization import Norm

__all__ = ["HEALTHY", "HELD_OUT", "Healthy"]


@dataclass(frozen=True)
class Healthy:
    """A run in which nothing is wrong."""

    name: str
    make: Callable[[int], Patient]


def sgd(
    architecture: Architecture, norm: Norm, *, lr: float = 0.05, batch_size: int = 64, wide: bool = False
) -> Callable[[int], Patient]:
    def make(seed: int) -> Patient:
        made = patient(architecture, norm, seed, model=build(architecture, norm, seed, wide=wide), lr=lr)
        return replace(made, batch_size=batch_size)

    return make


def adam(
    architecture: Architecture, norm: Norm, kind: type[torch.optim.Optimizer] = torch.optim.Adam
) -> Callable[[int], Patient]:
    def make(seed: int) -> Patient:
        made = patient(architecture, norm, seed)
        return replace(made, optimizer=kind(made.model.parameters(), lr=1e-3))

    return make


def tanh(seed: int) -> Patient:
    """Weights of variance 1/n, not 2/n: those of tanh."""
    model = plant.scale(build("mlp", None, seed), 0.5**0.5)
    plant.replace(model, nn.ReLU, nn.Tanh)
    return patient("mlp", None, seed, model=model)


def dropped(seed: int) -> Patient:
    """Dropout where it belongs: behind the last norm."""
    model = build("cnn", "batch_norm", seed)
    model.head = nn.Sequential(nn.Dropout(0.2), model.head)
    return patient("cnn", "batch_norm", seed, model=model)


HEALTHY = [
    Healthy("MLP, batch norm, SGD", sgd("mlp", "batch_norm")),
    Healthy("MLP, no norm, Adam", adam("mlp", None)),
    Healthy("MLP, layer norm, AdamW", adam("mlp", "layer_norm", torch.optim.AdamW)),
    Healthy("MLP, tanh, no norm, SGD", tanh),
    Healthy("MLP, wide, batch norm, SGD, batch of 128", sgd("mlp", "batch_norm", lr=0.1, batch_size=128, wide=True)),
    Healthy("CNN, batch norm, SGD", sgd("cnn", "batch_norm")),
    Healthy("CNN, group norm, SGD", sgd("cnn", "group_norm")),
    Healthy("CNN, batch norm, dropout before the head, SGD", dropped),
    Healthy("CNN, layer norm, Adam", adam("cnn", "layer_norm")),
    Healthy("CNN, wide, no norm, SGD", sgd("cnn", None, wide=True)),
]

HELD_OUT = [
    Healthy("ResNet, batch norm, SGD", sgd("resnet", "batch_norm")),
    Healthy("ResNet, group norm, Adam", adam("resnet", "group_norm")),
    Healthy("LSTM, no norm, Adam", adam("rnn", None)),
    Healthy("LSTM, layer norm, SGD", sgd("rnn", "layer_norm")),
    Healthy("Transformer, layer norm, AdamW", adam("transformer", "layer_norm", torch.optim.AdamW)),
    Healthy("Transformer, RMS norm, Adam", adam("transformer", "rms_norm")),
]
"""No run of these was looked at while a threshold was set."""
