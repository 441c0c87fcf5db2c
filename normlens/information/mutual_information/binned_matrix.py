"""Mutual information of all pairs of channels in bins of equal count."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from normlens.information.mutual_information.binned import bins_of, saturation
from normlens.information.mutual_information.matrix import InformationMatrix, channels_of
from normlens.information.mutual_information.table import ALONE

__all__ = ["binned_matrix"]

_BLOCK = 64  # channels whose tables with all others are held at a time


def binned_matrix(samples: Tensor, *, bins: int = 8) -> InformationMatrix:
    r"""Return the mutual information in nats of all pairs of channels in rank bins, by products of one-hot matrices.

    The same as :func:`binned` for each pair, with Miller and Madow's correction and each atom a bin of its own; on the
    diagonal the entropy of the bins.

    Args:
        samples: (N, C).
        bins: how many the continuous values of each channel are cut into.

    Returns:
        ``values`` (C, C) in float64 and ``flagged`` (C,): the channels that are saturated with another one
        (above .7 bins/16 nats) or share a table with it in which more than a fortieth of the samples are alone in
        their cell (a bias of .02 and more is left), and those that are not finite, whose rows and columns are nan.

    Raises:
        ValueError: the shape is not (N, C) with N > 1, or less than two bins.

    Source: Miller, "Note on the bias of information estimates", 1955.
    """
    if bins < 2:
        raise ValueError(f"bins must be at least 2; got {bins}; 8 is usual for a matrix")
    channels, finite = channels_of(samples)
    one_hot = _one_hot(channels, bins)
    blocks = [_rows(one_hot[i : i + _BLOCK], one_hot[i:], i) for i in range(0, len(one_hot), _BLOCK)]
    values, alone = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    doubtful = (values > saturation(bins)) | (alone > ALONE * len(samples))
    doubtful = (doubtful | doubtful.T).fill_diagonal_(False).any(1)
    values = values.triu() + values.triu(1).T
    values[~finite], values[:, ~finite] = torch.nan, torch.nan
    return InformationMatrix(values, doubtful | ~finite)


def _one_hot(channels: Tensor, bins: int) -> Tensor:
    """Return (C, widest, N): the bin of each value."""
    labels = torch.from_numpy(np.stack([bins_of(channel, bins) for channel in channels.cpu().numpy()]))
    one_hot = torch.nn.functional.one_hot(labels.to(channels.device)).to(torch.float32)  # counts are exact below 2^24
    return one_hot.transpose(1, 2).contiguous()


def _rows(some: Tensor, rest: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """Return the information of some channels with themselves and those after them, and the samples alone in a cell.

    ``before`` zeros stand before both.
    """
    (channels, width, n), others = some.shape, len(rest)
    joint = (some.flatten(0, 1) @ rest.flatten(0, 1).T).double().view(channels, width, others, width)
    margin = rest.sum(2).double()
    entropy = torch.xlogy(margin, margin).sum(1)
    plug_in = math.log(n) + (torch.xlogy(joint, joint).sum((1, 3)) - entropy[:channels, None] - entropy) / n
    occupied = (margin > 0).sum(1)
    correction = (occupied[:channels, None] + occupied - (joint > 0).sum((1, 3)) - 1).double() / (2 * n)
    pad = torch.nn.functional.pad
    return pad(plug_in + correction, (before, 0)), pad((joint == 1).sum((1, 3)), (before, 0))
