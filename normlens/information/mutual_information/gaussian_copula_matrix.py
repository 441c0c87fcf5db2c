"""Mutual information of all pairs of channels by a Gaussian copula."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.information.mutual_information.gaussian_copula import TIES
from normlens.information.mutual_information.matrix import InformationMatrix, channels_of
from normlens.information.mutual_information.samples import ties_allowed

__all__ = ["gaussian_copula_matrix"]


def gaussian_copula_matrix(samples: Tensor) -> InformationMatrix:
    r"""Return :math:`-\tfrac12\ln(1-\hat\rho_{ij}^2)` in nats for all pairs of channels, by one product of matrices.

    The same as :func:`gaussian_copula` for each pair; infinite on the diagonal, and zero for a constant channel.

    Args:
        samples: (N, C).

    Returns:
        ``values`` (C, C) in float64 and ``flagged`` (C,): the channels with an atom (a value that occurs more than
        three times and in more than one sample of a hundred) and those that are not finite, whose rows and columns are
        nan.

    Raises:
        ValueError: the shape is not (N, C) with N > 1.

    Source: the efficiency of normal scores, Klaassen and Wellner, Bernoulli, 1997.
    """
    channels, finite = channels_of(samples)
    ascending = channels.sort(1).values
    below = torch.searchsorted(ascending, channels)
    upto = torch.searchsorted(ascending, channels, right=True)
    scores = torch.special.ndtri((below + upto).double() / (2 * channels.shape[1]))
    scores = torch.nn.functional.normalize(scores - scores.mean(1, keepdim=True))
    rest = 1 - (scores @ scores.T).square()
    values = -0.5 * torch.where(rest > torch.finfo(rest.dtype).eps * channels.shape[1], rest, 0.0).log()
    values = values.triu() + values.triu(1).T  # a product of matrices is symmetric but for its rounding
    values[~finite], values[:, ~finite] = torch.nan, torch.nan
    return InformationMatrix(values, ((upto - below).amax(1) > ties_allowed(len(samples), TIES)) | ~finite)
