"""What may be passed as ``norm=`` to a model, and the layer that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from normlens import catalog

__all__ = ["Norm", "make_norm"]

Norm: TypeAlias = "str | type[nn.Module] | Callable[[int], nn.Module] | None"
"""A module name of normlens.nn, a layer class or function called as ``norm(num_features)``, or None for no norm."""


def make_norm(norm: Norm, num_features: int) -> nn.Module | None:
    """Make the normalization layer for ``num_features`` channels, or None.

    Args:
        norm: a module name of :mod:`normlens.nn`, a class or function called as ``norm(num_features)``, or None.
        num_features: the number of channels ``C`` of its input ``(N, C, *spatial)``.

    Raises:
        TypeError: ``norm`` is none of these, or what it returns is not a module.
        UnknownNameError: a name that no module of :mod:`normlens.nn` answers to.
    """
    if norm is None:
        return None
    if isinstance(norm, nn.Module) or not (isinstance(norm, str) or callable(norm)):
        raise TypeError(
            "norm must be a name of normlens.nn, a layer class or function called as norm(num_features), or None, "
            f"got {norm!r}: every place in the model needs a layer of its own, so pass what makes them."
        )
    make = catalog.load("normlens.nn", norm) if isinstance(norm, str) else norm
    layer = make(num_features)
    if not isinstance(layer, nn.Module):
        raise TypeError(f"norm(num_features) must return a torch.nn.Module, got {layer!r}: return the layer itself.")
    return layer
