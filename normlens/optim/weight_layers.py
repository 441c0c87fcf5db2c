"""The linear and convolution layers of a model whose weights an optimizer steps, and how their weights are laid out."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from normlens.optim.transform import owned_parameters
from normlens.risk import eager_module

__all__ = ["WeightLayer", "groups_of", "weight_layers"]

WeightLayer: TypeAlias = "nn.Linear | _ConvNd"
"""A layer with ``weight`` (out, in, *kernel) and an optional ``bias`` (out,)."""


def weight_layers(model: nn.Module, optimizer: torch.optim.Optimizer, *, what: str) -> dict[str, WeightLayer]:
    """Return the layers ``torch.nn.Linear`` and ``Conv1d`` to ``Conv3d`` whose weight the optimizer steps, by name.

    Transposed convolutions and reparametrized weights are left out: their gradients have another meaning.

    Args:
        model: the module that is trained.
        optimizer: the optimizer.
        what: who asks, named in the message.

    Raises:
        ValueError: there is none, or one weight serves two layers, whose inputs have statistics of their own.
    """
    owned = {id(parameter) for parameter in owned_parameters(model, optimizer).values()}
    found: dict[str, WeightLayer] = {}
    for name, module in eager_module(model).named_modules():
        plain = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
        if plain and not parametrize.is_parametrized(module) and id(module.weight) in owned:
            _check_tied(found, name, module, what)
            found[name] = module
    if not found:
        raise ValueError(
            f"{what} needs a torch.nn.Linear or convolution whose plain weight the optimizer steps; got none; "
            "build the optimizer from model.parameters(), and take reparametrizations off"
        )
    return found


def groups_of(layer: WeightLayer) -> int:
    """Return into how many groups a layer's channels fall: 1 for a linear one.

    Args:
        layer: the layer.
    """
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _check_tied(found: dict[str, WeightLayer], name: str, module: WeightLayer, what: str) -> None:
    for other, seen in found.items():
        if seen.weight is module.weight:
            raise ValueError(
                f"{what} needs every weight to belong to one layer; got one weight for {other} and {name}; "
                "untie them, or leave it to the plain optimizer"
            )
