"""Cross-iteration batch normalization: channels standardized over the last batches, as today's weights see them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import RunningNormalization
from normlens.nn.functional import Moments, affine_standardize, batch_dims, centered_moments

__all__ = ["CrossIterationBatchNorm"]

_HISTORY = ("past_weight", "past_mean_slope", "past_var_slope")


class CrossIterationBatchNorm(RunningNormalization):
    r"""Standardize each channel over the last batches and over space, then scale and shift it.

    ``y = weight_c (x - mean_c) / sqrt(var_c + eps) + bias_c``; ``mean`` is the average of the means ``m_s`` of the last
    ``window`` batches with this one, and ``var`` that of their biased variances ``v_s`` plus the variance among the
    ``m_s``: just those of all values together, were the batches of one size. In eval mode they are ``running_mean``,
    ``running_var``, which follow each batch as in batch norm.

    Between batches the weights ``W`` before the layer move. Called as ``layer(x, W)``, it carries an earlier batch over
    to them, to first order: with ``d = W - W_s``, row by row, ``m_s -> m_s + <dm_s/dW, d>`` and ``v_s -> max(0, v_s +
    <dv_s/dW, d> - <dm_s/dW, d>^2)``, which is the paper's compensation of ``m_s`` and of ``E[x^2]``, without its
    cancellation. Called as ``layer(x)``, as a model does that knows nothing of this (all of :mod:`normlens.models`), it
    takes the batches as they were, which is right as far as the weights stand still.

    With ``window=1``, and in the first ``burn_in`` batches, it is batch norm; with fixed weights, batch norm over the
    batches together. All earlier batches are constants, as is the compensation: the gradient is exact in this sense.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; ``W`` ``(C, *)``, row ``c`` of which alone makes channel
    ``c``, as in a linear or convolution layer; the output is dimensionless before ``weight`` and ``bias``.

    Valid in train mode from two values per channel on, and as far as the weights move little in ``window`` steps: a
    larger step is beyond first order, and weights further below are not compensated for at all. Compensation costs two
    backward passes through the layer before.

    Source: Yao, Cao, Zheng, Huang and Lin, CVPR 2021, arXiv:2002.05712, equations 5 to 11. The published code divides
    by ``sqrt(var) + eps``, takes unbiased variances, drops batches whose variance came out negative, and draws
    ``weight`` from U(0, 1).

    Args:
        num_features: ``C``, the channels at dimension 1.
        window: how many batches are pooled.
        burn_in: for how many batches only the newest counts.
        eps: added to the variance; with 0 a constant channel becomes nan.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``window`` is below 1, a wrong number of channels, one value per channel in train mode, or a ``W``
            that has not ``C`` rows.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    past_mean: Tensor
    past_var: Tensor
    past_weight: Tensor | None
    past_mean_slope: Tensor | None
    past_var_slope: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        window: int = 4,
        burn_in: int = 100,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=True,
            device=device,
            dtype=dtype,
        )
        if window < 1:
            raise ValueError(
                f"CrossIterationBatchNorm needs a window of at least 1; got {window}; window=1 is batch norm"
            )
        self.window, self.burn_in = window, burn_in
        for name in ("past_mean", "past_var"):
            self.register_buffer(name, torch.zeros(window, num_features, device=device, dtype=dtype))
        for name in _HISTORY:
            self.register_buffer(name, None)

    def reset_running_stats(self) -> None:
        """Forget all batches, and the weights."""
        super().reset_running_stats()
        self.past_mean.zero_()
        self.past_var.zero_()
        for name in _HISTORY:
            setattr(self, name, None)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics and the window move.

        Args:
            x: the input.
            before: the weights ``W`` of the layer whose output ``x`` is, to carry earlier batches over to them.

        Raises:
            ValueError: ``before`` has not one row per channel.
        """
        self.check_input(x)
        if not self.training:
            running = (self.running_mean, self.running_var)
            return native.batch_norm(x, *running, self.weight, self.bias, training=False, factor=0.0, eps=self.eps)
        if before is not None and len(before) != self.num_features:
            raise ValueError(
                f"CrossIterationBatchNorm({self.num_features}) needs weights with one row per channel; got "
                f"{tuple(before.shape)}; pass the weight of the layer whose output this is, or none"
            )
        self.check_count(x.numel() // self.num_features, x, unit="channel", advice="use a larger batch, or .eval()")
        centered, moments = centered_moments(x, batch_dims(x))
        batch = Moments(*(moment.flatten() for moment in moments))
        self.track(batch, count=x.numel() // self.num_features)
        pooled = self._pooled(batch, before)
        return affine_standardize(centered, batch.mean, pooled, self.weight, self.bias, self.eps).to(x.dtype)

    def _pooled(self, batch: Moments, before: Tensor | None) -> Moments:
        """Return mean and variance of the window, (C,) each, after this batch was taken into it."""
        now, used = self._places(batch.mean)
        means, variances = self.past_mean.to(batch.mean.dtype), self.past_var.to(batch.mean.dtype)
        if before is not None:
            means, variances = self._carried(means, variances, before)
            self._remember_weights(batch, before, now)
        means, variances = torch.where(now, batch.mean, means), torch.where(now, batch.var, variances)
        for old, new in ((self.past_mean, batch.mean), (self.past_var, batch.var)):
            old.copy_(torch.where(now, new.detach(), old))
        mean = (used * means).sum(0)
        var = (used * (variances + (means - mean).square())).sum(0)
        return Moments(mean, var)

    def _places(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return where in the window this batch stands, and the share of each in the average, both (window, 1)."""
        count = self.num_batches_tracked
        slots = torch.arange(self.window, device=count.device)
        now = slots == (count - 1) % self.window
        used = (now | ((slots < count) & (count > self.burn_in))).to(like.dtype)
        return now[:, None], (used / used.sum())[:, None]

    def _carried(self, means: Tensor, variances: Tensor, before: Tensor) -> Moments:
        """Carry all batches over to the weights of today, as constants; the first time nothing is known of them."""
        history = self._history()
        if history is None:
            return Moments(means, variances)
        moved = before.detach().flatten(1) - history.weight
        shift = (history.mean_slope * moved).sum(2)
        change = (history.var_slope * moved).sum(2)
        return Moments(means + shift, (variances + change - shift.square()).clamp(min=0))

    def _remember_weights(self, batch: Moments, before: Tensor, now: Tensor) -> None:
        if self._history() is None:
            for name in _HISTORY:  # what was seen without weights does not move with them: its slopes are zero
                setattr(self, name, torch.zeros_like(before.detach().flatten(1)).repeat(self.window, 1, 1))
        slopes = (before.detach(), *(_slope(statistic, before) for statistic in batch))
        for name, new in zip(_HISTORY, slopes, strict=True):
            old = getattr(self, name)
            old.copy_(torch.where(now[:, :, None], new.flatten(1), old))

    def _history(self) -> _History | None:
        held = [getattr(self, name) for name in _HISTORY]
        return None if held[0] is None else _History(*held)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name in _HISTORY:  # they are there only once weights were seen
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.zeros_like(saved, device=self.past_mean.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _History(NamedTuple):
    """Weights of each batch in the window and the derivatives of its mean and variance by them, (window, C, F)."""

    weight: Tensor
    mean_slope: Tensor
    var_slope: Tensor


def _slope(statistic: Tensor, weight: Tensor) -> Tensor:
    """Return the derivative of each channel's statistic by its row of the weights; zero where no graph is."""
    if not (statistic.requires_grad and weight.requires_grad):
        return torch.zeros_like(weight).detach()
    (slope,) = torch.autograd.grad(statistic.sum(), weight, retain_graph=True, materialize_grads=True)
    return slope.detach()
