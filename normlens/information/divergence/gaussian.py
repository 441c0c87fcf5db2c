"""Kullback-Leibler divergence of Gaussians with the samples' means and variances."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

from normlens.estimate import Estimate
from normlens.information.moments import Moments

__all__ = ["gaussian_kl", "gaussian_kl_floor", "gaussian_kl_of"]


def gaussian_kl(now: Moments, reference: Moments) -> Estimate:
    r"""Divergence of the Gaussian now from that of the reference, in nats, averaged over the channels.

    .. math:: \mathrm{KL} = \tfrac12\Big[\frac{\sigma_t^2 + (\mu_t - \mu_r)^2}{\sigma_r^2} - 1\Big] -
       \ln\frac{\sigma_t}{\sigma_r}

    +Inf where one of them is constant and the other is not. The error is the standard error by the delta method, from
    those of means and log standard deviations taken as independent of each other and of channels moving together; at no
    drift it vanishes, and the floor says what chance reaches.

    Args:
        now: the moments of the one sample.
        reference: those of the other.
    """
    values = gaussian_kl_of(now, reference)
    ratio = now.variance / reference.variance
    shift = (now.mean - reference.mean) / reference.std
    mean_errors = now.mean_error.square() / reference.variance, reference.mean_error.square() / reference.variance
    of_means = shift.square() * (mean_errors[0] + mean_errors[1])
    of_scales = (ratio - 1).square() * now.log_std_error.square()
    of_scales += (ratio + shift.square() - 1).square() * reference.log_std_error.square()
    error = (of_means + of_scales).sqrt()
    return Estimate(float(values.mean()), error=float(error.mean()), cost=float(now.count + reference.count))


def gaussian_kl_of(now: Moments, reference: Moments) -> Tensor:
    """Return each channel's :func:`gaussian_kl`, (C,) float64; 0 where both are the same constant."""
    shift = now.mean - reference.mean
    values = ((now.variance + shift.square()) / reference.variance - 1) / 2
    values -= (now.variance / reference.variance).log() / 2
    same = (now.variance == 0) & (reference.variance == 0) & (shift == 0)
    apart = (now.variance == 0) != (reference.variance == 0)
    apart |= (now.variance == 0) & (reference.variance == 0) & (shift != 0)
    return torch.where(same, 0.0, torch.where(apart, math.inf, values))


def gaussian_kl_floor(now: Moments, samples: int, *, level: float = 0.99) -> Tensor:
    r"""Return the divergence that a fresh batch exceeds with probability 1 - ``level`` at most, (C,), in nats.

    :math:`t^2(\delta_\mu^2/2 + \delta_\sigma^2)` with the standard errors of the differences of two such batches,
    :math:`\delta = \sqrt2\,\mathrm{se}`, and Student's quantile t of ``samples`` - 1 degrees of freedom.
    Source: Szekely and Bakirov 2003, Probab. Theory Relat. Fields 126 (the tail is heaviest where both move together).

    Args:
        now: moments of a batch.
        samples: the independent samples in it.
        level: in (0.785, 1), where the bound on the tail holds.
    """
    t = float(stats.t.ppf((1 + level) / 2, samples - 1)) if samples > 1 else math.nan
    shift = now.mean_error.square() / now.variance
    return t**2 * (shift + 2 * now.log_std_error.square())
