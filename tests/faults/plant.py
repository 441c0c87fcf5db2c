"""Small surgery on any of the networks: what the faults are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from normlens.nn.vocabulary import is_normalization

__all__ = ["hidden", "norms", "put_before", "replace", "scale"]


def norms(model: nn.Module) -> list[nn.Module]:
    """Return the normalization layers with an affine map."""
    return [
        module for module in model.modules() if is_normalization(module) and getattr(module, "weight", None) is not None
    ]


def hidden(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return the linear and convolution layers but the last."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[:-1]


@torch.no_grad()
def scale(model: nn.Module, factor: float) -> nn.Module:
    """Multiply the weight matrices of all layers but the last, recurrent ones too."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter is not last.weight:
            parameter.mul_(factor)
    return model


def replace(model: nn.Module, old: type[nn.Module], new: Callable[[], nn.Module]) -> int:
    """Put a new module in the place of every ``old`` one, and return how many there were."""
    places = [(parent, name) for parent, name, child in _children(model) if isinstance(child, old)]
    for parent, name in places:
        setattr(parent, name, new())
    return len(places)


def put_before(model: nn.Module, chosen: Callable[[nn.Module], bool], new: Callable[[], nn.Module]) -> int:
    """Put a new module before every chosen one, and return how many there were."""
    places = [(parent, name, child) for parent, name, child in _children(model) if chosen(child)]
    for parent, name, child in places:
        setattr(parent, name, nn.Sequential(new(), child))
    return len(places)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            yield parent, name, child


class Naive(nn.Module):
    """Cross-entropy as ``-log(softmax)``, whose logarithm is that of zero where the softmax underflows."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.softmax(1).gather(1, targets[:, None]).log().mean()
