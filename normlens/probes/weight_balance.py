"""How far the weights of a network are from the smallest ones with the same function."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normlens.optim.channel_units import ChannelUnit, channel_units
from normlens.optim.equi_normalization import equi_normalize
from normlens.optim.rescaling_graph import find_streams

__all__ = ["Balance", "weight_balance"]


class Balance(NamedTuple):
    """How well two layers in a row share the scale of the channels between them.

    Attributes:
        gap: ``(|theta|^2 - min |D theta|^2) / |theta|^2`` in [0, 1): what rescaling the hidden channels would save.
        imbalance: the largest ``|ln(right / left)|`` over the channels, of the norms of what reads and what writes it;
            0 at the minimum. Channels with a side of zero are left out.
    """

    gap: float
    imbalance: float


@torch.no_grad()
def weight_balance(model: nn.Module, *, sweeps: int = 50) -> Balance:
    """Compare the energy of the weights with the least that equi-normalization reaches, in float64 on a copy.

    Of the weights between which the channels are free to be rescaled, without biases.

    Source: Stock, Graham, Gribonval and Jegou, ICLR 2019, arXiv:1902.10416.

    Args:
        model: whose layers form chains that ``torch.fx`` can follow; it is left as it is.
        sweeps: of exact coordinate descent.

    Raises:
        ValueError: they do not, see :func:`normlens.optim.rescaling_graph.find_streams`.
    """
    copied = copy.deepcopy(model).double()
    streams = find_streams(copied)
    units = channel_units(copied, streams, fold=True)
    imbalance = torch.cat([_log_ratios(unit) for unit in units])
    before = _energy(units)
    equi_normalize(copied, streams, sweeps=sweeps)
    gap = float((before - _energy(units)) / before)
    return Balance(gap, float(imbalance.max()) if len(imbalance) else 0.0)


def _energy(units: list[ChannelUnit]) -> Tensor:
    layers = {id(layer): layer for unit in units for layer in (*unit.writers, *unit.readers)}
    return torch.stack([layer.weight.square().sum() for layer in layers.values()]).sum()


def _log_ratios(unit: ChannelUnit) -> Tensor:
    """Return ``|ln(right / left)|`` of each channel that has both sides."""
    left = torch.stack([layer.weight.flatten(1).square().sum(1) for layer in unit.writers]).sum(0)
    columns = [layer.weight.reshape(len(layer.weight), unit.channels, -1) for layer in unit.readers]
    right = torch.stack([column.square().sum((0, 2)) for column in columns]).sum(0)
    return (right / left).log().abs()[(left != 0) & (right != 0)] / 2
