"""The mutual information of all pairs of channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["InformationMatrix", "channels_of"]


class InformationMatrix(NamedTuple):
    """The mutual information of all pairs of C channels in nats.

    Attributes:
        values: (C, C), symmetric; nan in the row and the column of a channel that is not finite.
        flagged: (C,), the channels for which the estimator is not made.
    """

    values: Tensor
    flagged: Tensor


def channels_of(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels in float64 (C, N), -0.0 as 0.0, and which of them are finite; the others are zeros.

    Raises:
        ValueError: the shape is not (N, C) with N > 1.
    """
    if samples.ndim != 2 or len(samples) < 2:
        got = tuple(samples.shape)
        raise ValueError(f"samples need shape (N, C) with N > 1; got {got}; take one position of each image or token")
    x = samples.detach()
    channels = ((x.cpu() if x.device.type == "mps" else x).double() + 0.0).T.contiguous()
    finite = channels.isfinite().all(1)
    return torch.where(finite[:, None], channels, 0.0), finite
