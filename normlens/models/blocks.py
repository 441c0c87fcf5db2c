"""Blocks of weight, normalization and ReLU, in the one or the other order."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, TypeAlias

from torch import nn

__all__ = ["Placement", "chain", "needs_bias", "placed", "weight_block"]

Placement: TypeAlias = Literal["pre-activation", "post-activation"]
"""``pre-activation``: weight, norm, ReLU. ``post-activation``: weight, ReLU, norm."""


def placed(norm: nn.Module | None, placement: Placement) -> tuple[nn.Module | None, nn.Module | None]:
    """Return what stands before and what stands after the ReLU.

    Args:
        norm: the normalization layer, if any.
        placement: on which side of the ReLU it stands.

    Raises:
        ValueError: an unknown placement.
    """
    if placement == "pre-activation":
        return norm, None
    if placement == "post-activation":
        return None, norm
    raise ValueError(
        "placement must be 'pre-activation' (weight, norm, ReLU) or 'post-activation' (weight, ReLU, norm), "
        f"got {placement!r}: choose one of the two."
    )


def needs_bias(norm: object | None, placement: Placement) -> bool:
    """Say whether a weight layer needs a bias: unless a normalization follows it directly, which would subtract it.

    Args:
        norm: what the model normalizes with, None for nothing.
        placement: on which side of the ReLU it stands.
    """
    return norm is None or placement == "post-activation"


def chain(*steps: tuple[str, nn.Module | None]) -> nn.Sequential:
    """Apply named modules one after the other; a None is left out.

    Args:
        steps: pairs of a name and a module.
    """
    return nn.Sequential(OrderedDict((name, module) for name, module in steps if module is not None))


def weight_block(name: str, weight: nn.Module, norm: nn.Module | None, placement: Placement) -> nn.Sequential:
    """Chain a weight layer, a normalization and a ReLU of its own, named ``name``, ``norm`` and ``relu``.

    The ReLU is a module that no other place shares and that does not write in place, so that its input can be captured.

    Args:
        name: the name of the weight layer.
        weight: the weight layer.
        norm: the normalization layer, if any.
        placement: on which side of the ReLU it stands.
    """
    before, after = placed(norm, placement)
    return chain((name, weight), ("norm", before), ("relu", nn.ReLU()), ("norm", after))
