"""What enters the linear and convolution layers that lie behind another layer."""

from __future__ import annotations

from torch import nn

from normlens.probes.module_kinds import is_weight_layer
from normlens.run.capture import Activation
from normlens.run.probe import Step

__all__ = ["behind_the_first"]


def behind_the_first(step: Step) -> dict[str, Activation]:
    """Return the linear and convolution layers but one that comes before all others with parameters, in network order.

    The input of that one are the data, which do not change while the network learns.

    Args:
        step: whose activations are used.
    """
    called = step.activations(lambda _, module: is_weight_layer(module) or _is_trainable_leaf(module))
    behind = list(called.items())[1:]
    return {name: activation for name, activation in behind if is_weight_layer(activation.module)}


def _is_trainable_leaf(module: nn.Module) -> bool:
    return not list(module.children()) and bool(list(module.parameters()))
