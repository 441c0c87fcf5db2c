"""Which modules are normalizations, weight layers or nonlinearities."""

from __future__ import annotations

from torch import nn

from normlens.nn.vocabulary import is_normalization

__all__ = ["flat_below_zero", "is_nonlinearity", "is_normalization", "is_weight_layer"]

_WEIGHTS = (nn.Linear, nn.modules.conv._ConvNd)
_FLAT = (nn.ReLU, nn.ReLU6, nn.Threshold)
_SMOOTH = (nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus)


def is_weight_layer(module: nn.Module) -> bool:
    """Say whether a module is linear or a convolution."""
    return isinstance(module, _WEIGHTS)


def is_nonlinearity(module: nn.Module) -> bool:
    """Say whether a module is a rectifier or one of its smooth relatives, elementwise and gating at zero."""
    return isinstance(module, (*_FLAT, *_SMOOTH))


def flat_below_zero(module: nn.Module) -> bool:
    """Say whether a unit that is never positive gets no gradient through this module."""
    return isinstance(module, _FLAT)
