"""How much the mean and the deviation of a batch scatter, from samples of what enters a layer; pure tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Noise", "average", "standard_error"]

_PARTITIONS = 16  # ways to cut the samples into batches; more than these change little, they share the samples


@dataclass(frozen=True)
class Noise:
    r"""Moments of each channel, with what they scatter from one batch of independent samples to the next.

    The sample, not the value, is the independent unit: with :math:`m_n` the mean of sample n over its P positions about
    the overall mean, and :math:`q_n` that of the squared deviations, a batch has mean :math:`\bar m` and variance
    :math:`\bar q - \bar m^2` over its samples, and everything follows from these. In float64.

    Attributes:
        positions: P, values of a channel in each sample.
        mean: (C,), over all samples and positions.
        variance: (C,), of a value; corrected for the mean that was subtracted.
        design: (C,), :math:`P\,\mathrm{Var}(m_n)/\sigma^2`: P values of a sample count as P / design independent ones.
        excess_kurtosis: (C,), of the values.
        log_variance_noise: (C,), :math:`\mathrm{Var}(q_n)/\sigma^4`: the squared error of the logarithm of the
            variance, times the samples it is taken from.
        means: (N, C), the :math:`m_n`.
        squares: (N, C), the :math:`q_n`.
        fourths: (N, C), the same of the fourth powers.
    """

    positions: int
    mean: Tensor
    variance: Tensor
    design: Tensor
    excess_kurtosis: Tensor
    log_variance_noise: Tensor
    means: Tensor
    squares: Tensor
    fourths: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Noise:
        """Take them from (samples, positions, channels).

        Raises:
            ValueError: the shape has another rank, or there are no values.
        """
        if values.ndim != 3 or values.shape[0] * values.shape[1] == 0:
            raise ValueError(f"noise needs values of shape (samples, positions, channels); got {tuple(values.shape)}")
        values = values.detach()
        wide = (values.cpu() if values.device.type == "mps" else values).double()
        origin = wide[0, 0]  # counted from a value of its own, a constant channel has no variance at all
        centered = wide - origin
        shift = centered.mean((0, 1))
        centered = centered - shift
        squares = centered.square()
        means, of_squares, fourths = centered.mean(1), squares.mean(1), squares.square().mean(1)
        biased, scatter = of_squares.mean(0), _variance(means)
        variance = biased + scatter / len(means)
        return cls(
            values.shape[1],
            origin + shift,
            variance,
            values.shape[1] * scatter / variance,
            fourths.mean(0) / biased.square() - 3,
            _variance(of_squares) / variance.square(),
            means,
            of_squares,
            fourths,
        )

    @property
    def samples(self) -> int:
        """N, the independent units."""
        return len(self.means)

    def design_error(self, live: Tensor) -> float:
        """Return the standard error of the mean of ``design`` (delta method).

        Args:
            live: which channels.
        """
        scatter = self.positions * self.means.square() - self.design * self.squares
        return standard_error((scatter / self.variance)[:, live].mean(1))

    def deviation_noise(self, batch: int, live: Tensor, generator: torch.Generator) -> tuple[float, float]:
        r"""Return :math:`\mathrm{Var}(\sigma_B)\,4M/(\sigma^2(\rho + 2))`, M = batch x P, and its standard error.

        The samples are cut into batches at random, several times over, and the ratio is averaged over the channels.

        Args:
            batch: samples of a batch; at least two batches must fit into the samples.
            live: which channels.
            generator: of the cuts.
        """
        count = len(self.means) // batch
        scale = 4 * batch * self.positions / (self.variance * (self.excess_kurtosis + 2))
        found = []
        for _ in range(_PARTITIONS):
            order = torch.randperm(len(self.means), generator=generator)[: count * batch].to(self.means.device)
            means, squares = (part[order].reshape(count, batch, -1).mean(1) for part in (self.means, self.squares))
            deviations = (squares - means.square()).clamp(min=0).sqrt()
            found.append(average(_variance(deviations) * scale, live))
        ratios = torch.tensor(found, dtype=torch.float64)
        return float(ratios.mean()), math.hypot(self.law_error(live), standard_error(ratios))

    def law_error(self, live: Tensor) -> float:
        """Return the standard error of the mean of P Var(q_n) / (E x^4 - sigma^4), which the ratio is for large M.

        Args:
            live: which channels.
        """
        v, k = self.squares.mean(0), self.fourths.mean(0)
        off = self.squares - v
        above, below = self.positions * off.square(), k - v.square()
        ratio = above.mean(0) / below
        influence = above - above.mean(0) - ratio * (self.fourths - k - 2 * v * off)
        return standard_error((influence / below)[:, live].mean(1))


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of independent values (N,); nan of a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def average(values: Tensor, live: Tensor) -> float:
    """Return the mean over the channels ``live``; nan where there are none."""
    return float(values[live].mean()) if bool(live.any()) else math.nan


def _variance(values: Tensor) -> Tensor:
    """Return the unbiased variance over dimension 0; nan of a single row."""
    return values.var(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)
