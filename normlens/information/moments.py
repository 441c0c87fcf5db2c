"""Moments: mean and variance of many channels, streamed and merged without loss of precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]

_CHUNK = 1 << 20  # values turned to float64 at a time


@dataclass(frozen=True)
class Moments:
    r"""Mean and variance of each channel, with the standard errors of both, in float64.

    Samples have shape (samples, positions, channels). Positions within one sample are correlated (neighboring pixels,
    tokens of one sentence), so the standard errors take the *sample* as the independent unit: with
    :math:`m_n` the mean over the positions of sample n and :math:`q_n` that of its squared deviations,
    :math:`\mathrm{se}(\mu) = \mathrm{sd}(m_n)/\sqrt{N}` and
    :math:`\mathrm{se}(\ln\sigma) = \mathrm{sd}(q_n) / (2\sigma^2\sqrt{N})` (delta method).

    Attributes:
        count: values per channel.
        mean: (C,).
        variance: (C,), biased (divided by the count).
        mean_error: (C,), standard error of the mean; nan for a single sample.
        log_std_error: (C,), standard error of the logarithm of the standard deviation; nan for a single sample.
    """

    count: int
    mean: Tensor
    variance: Tensor
    mean_error: Tensor
    log_std_error: Tensor

    @property
    def std(self) -> Tensor:
        """Square root of the biased variance, (C,)."""
        return self.variance.sqrt()

    @classmethod
    def of(cls, samples: Tensor) -> Moments:
        """Take the moments of (samples, positions, channels) in two passes over chunks of samples.

        Raises:
            ValueError: the shape has another rank, or there are no values.
        """
        if samples.ndim != 3 or samples.shape[0] * samples.shape[1] == 0:
            raise ValueError(f"moments need values of shape (samples, positions, channels); got {tuple(samples.shape)}")
        chunks = torch.split(samples, max(1, _CHUNK // max(1, samples[0].numel())))
        origin = _double(samples[0, 0])  # counted from a value of its own, a constant channel has no variance at all
        sample_means = torch.cat([(_double(chunk) - origin).mean(1) for chunk in chunks])
        mean = sample_means.mean(0)
        squares = torch.cat([(_double(chunk) - origin - mean).square().mean(1) for chunk in chunks])
        variance = squares.mean(0)
        return cls(
            samples.shape[0] * samples.shape[1],
            origin + mean,
            variance,
            _standard_error(sample_means),
            _standard_error(squares) / (2 * variance),
        )


def _standard_error(values: Tensor) -> Tensor:
    if len(values) < 2:
        return torch.full_like(values[0], torch.nan)
    return values.std(0) / math.sqrt(len(values))


def _double(values: Tensor) -> Tensor:
    """Return float64 values; on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()
