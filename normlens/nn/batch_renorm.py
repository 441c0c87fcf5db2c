"""Batch renormalization: batch norm corrected, within limits, toward what the running statistics would have given."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import Normalization
from normlens.nn.functional import batch_moments, promote
from normlens.nn.running import averaging_factor

__all__ = ["BatchRenorm"]


class BatchRenorm(Normalization):
    """Standardize each channel over batch and space, correct it toward the running statistics, scale and shift it.

    ``y = weight_c ((x - mean_c) / std_c r_c + d_c) + bias_c`` in train mode, with ``mean_c`` and ``std_c = sqrt(var_c +
    eps)`` over ``(N, *spatial)`` of channel ``c``, ``r_c = std_c / running_std_c`` kept within ``[1 / r_max, r_max]``
    and ``d_c = (mean_c - running_mean_c) / running_std_c`` within ``[-d_max, d_max]``. In eval mode ``y = weight_c (x -
    running_mean_c) / running_std_c + bias_c``, which without limits is what train mode gives too. After each batch in
    train mode ``running' = (1 - momentum) running + momentum batch`` for the mean and for the standard deviation.

    The limits that apply are 1 and 0, which is batch norm, for the first ``warmup_steps`` batches counted by
    ``num_batches_tracked``, then grow linearly: see :meth:`limits`. A run shorter than that is one of batch norm.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid in train mode from two values per channel on. The paper takes ``r`` and ``d`` as constants, so the backward
    pass is that of batch norm times ``r``, ``dL/dx = weight r / std (g - mean(g) - z mean(g z))`` with ``z = (x - mean)
    / std`` and ``g = dL/dy``: the derivative of the loss with ``r`` and ``d`` held at this batch's values, not of the
    loss itself, and so are second derivatives. They are right by double backward or ``jvp(grad)``, not by
    ``torch.func.hessian``.

    Source: Ioffe, NeurIPS 2017, arXiv:1702.03275, algorithm 1; the schedule is that of its experiments.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance, also within ``running_std``; with 0 a constant channel becomes nan.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        r_max: the limit of ``r`` at the end of the schedule, at least 1; ``inf`` for none.
        d_max: the limit of ``d`` at the end of the schedule, at least 0; ``inf`` for none.
        warmup_steps: how many batches the layer is batch norm.
        r_max_steps: from how many batches on the limit is ``r_max``.
        d_max_steps: from how many batches on the limit is ``d_max``.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: limits that allow nothing, a schedule that ends before it begins, a wrong number of channels, or one
            value per channel in train mode.
    """

    exact_gradient: ClassVar[bool] = False
    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-3,
        momentum: float | None = 0.01,
        affine: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 5000,
        r_max_steps: int = 40_000,
        d_max_steps: int = 25_000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.momentum, self.r_max, self.d_max = momentum, r_max, d_max
        self.warmup_steps, self.r_max_steps, self.d_max_steps = warmup_steps, r_max_steps, d_max_steps
        self._check_schedule()
        zero = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_buffer("running_mean", zero)
        self.register_buffer("running_std", torch.ones_like(zero))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    @property
    def running_var(self) -> Tensor:
        """A new tensor ``running_std^2 - eps``: with it batch norm of this ``eps`` is this layer in eval mode."""
        return (promote(self.running_std).square() - self.eps).clamp(min=0)

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return the limits of ``r`` and of ``d`` for the next batch, as scalars on the device of the buffers.

        With ``t`` batches seen, the limit of ``r`` is 1 for ``t <= warmup_steps``, ``r_max`` for ``t >= r_max_steps``
        and linear between; that of ``d`` likewise, from 0 to ``d_max``.
        """
        begin, seen = self.warmup_steps, self.num_batches_tracked
        r = _ramp(seen, (begin, 1.0), (self.r_max_steps, self.r_max))
        return r, _ramp(seen, (begin, 0.0), (self.d_max_steps, self.d_max))

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, standard deviation 1, count 0, and the schedule begins anew."""
        self.running_mean.zero_()
        self.running_std.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set ``weight`` to one and ``bias`` to zero, and forget all batches."""
        super().reset_parameters()
        self.reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics and the schedule move."""
        self.check_input(x)
        if not self.training:
            mean, var = self.running_mean, promote(self.running_std).square()
            return native.batch_norm(x, mean, var, self.weight, self.bias, training=False, factor=0.0, eps=0.0)
        advice = "use a larger batch, since the gradient of a single value is zero, or eval mode"
        self.check_count(x.numel() // self.num_features, x, unit="channel", advice=advice)
        scale, shift = self._corrections(x)
        if self.weight is not None and self.bias is not None:
            scale, shift = self.weight * scale, self.weight * shift + self.bias
        return native.batch_norm(x, None, None, scale, shift, training=True, factor=0.0, eps=self.eps)

    @torch.no_grad()
    def _corrections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``r`` and ``d`` of this batch, ``(C,)`` each and constants, and let the running statistics follow."""
        mean, var = (moment.flatten() for moment in batch_moments(x.detach()))
        std, running_std = (var + self.eps).sqrt(), promote(self.running_std)
        r_limit, d_limit = self.limits()
        r = (std / running_std).clamp(1 / r_limit, r_limit)
        d = ((mean - self.running_mean) / running_std).clamp(-d_limit, d_limit)
        self._track(mean, std)
        return r, d

    def _track(self, mean: Tensor, std: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        factor = averaging_factor(self.momentum, self.num_batches_tracked)
        for running, batch in ((self.running_mean, mean), (self.running_std, std)):
            running.copy_((1 - factor) * promote(running) + factor * batch)

    def _check_schedule(self) -> None:
        if not (self.r_max >= 1 and self.d_max >= 0):
            raise ValueError(
                f"BatchRenorm needs r_max of at least 1 and d_max of at least 0; got r_max={self.r_max}, "
                f"d_max={self.d_max}; r_max=1 with d_max=0 is batch norm, inf sets no limit"
            )
        if not 0 <= self.warmup_steps <= min(self.r_max_steps, self.d_max_steps):
            raise ValueError(
                "BatchRenorm needs 0 <= warmup_steps <= r_max_steps and d_max_steps; got "
                f"warmup_steps={self.warmup_steps}, r_max_steps={self.r_max_steps}, d_max_steps={self.d_max_steps}; "
                "shorten the warm-up, 0 for none, or let the limits grow for longer"
            )


def _ramp(seen: Tensor, begin: tuple[int, float], end: tuple[int, float]) -> Tensor:
    """Go linearly from the value of ``begin`` to that of ``end``, each a (count, value); a step where counts agree."""
    (first, low), (last, high) = begin, end
    done = torch.where(seen >= last, 1.0, ((seen - first).double() / max(last - first, 1)).clamp(0, 1))
    return torch.where(done > 0, low + (high - low) * done, low)  # an infinite limit times nothing done would be nan
