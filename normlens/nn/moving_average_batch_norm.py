"""Moving average batch normalization: root mean squares, and what the gradient loses to them, of the last batches."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from normlens.nn.base import Normalization
from normlens.nn.extra_gradient import add_to_gradient
from normlens.nn.functional import affine, batch_dims, mean_square, per_channel, promote

__all__ = ["MovingAverageBatchNorm"]


class MovingAverageBatchNorm(Normalization):
    r"""Divide each channel by its root mean square over the last batches and over space, then scale and shift it.

    ``y = weight_c r_c z + bias_c`` with ``z = x / sqrt(chi_c + eps)``; ``chi`` is the plain mean, over the last
    ``window`` batches with this one, of their mean squares over ``(N, *spatial)``; the mean is not removed. ``r =
    sqrt((chi + eps) / (running_mean_square + eps))``, clipped to ``[1 / limit, limit]``, is a constant that takes the
    output to the scale of eval mode; it is 1 for the first ``warmup`` batches. After each batch ``running' = (1 -
    momentum) running + momentum ms``; the first ``1 / momentum`` batches count alike. In eval mode ``y = weight_c x /
    sqrt(running + eps) + bias_c``, whose gradient is exact.

    **The backward pass is not the derivative of the forward pass, by design.** With ``g = dL/dz`` and ``p = mean(g z)``
    of each channel it is ``dL/dx = (g - z P) / sqrt(chi + eps)``, ``P`` the mean of ``p`` over the last ``window``
    batches with this one (0 for a batch that had no backward pass). This batch's share of ``P`` is what is exact, at
    constant ``r`` and earlier batches. That of the earlier ones, ``K``, makes it the gradient of ``L - sum_c K_c n w /
    2 log(chi_c + eps)`` for ``n`` values per channel and ``w`` batches, and its second derivatives are those of this
    function. Differences of gradients, which see ``r`` move, come to other numbers. The term in ``K`` enters the first
    backward pass through each forward pass alone: see :func:`normlens.nn.extra_gradient.add_to_gradient`.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid for any batch size and for a single value. As the mean stays, the paper centers the weights before it.

    Source: Yan, Wan, Zhang, Zhang, Wei and Sun, ICLR 2020, arXiv:2001.06838. Its window is the batch size that is meant
    over the one there is; the published code clips ``r`` to ``[1/5, 5]`` and leaves it at 1 for at least 1000 batches.

    Args:
        num_features: ``C``, the channels at dimension 1.
        window: how many batches are averaged over; with 1 the gradient is exact.
        eps: added to the mean square; with 0 a channel of zeros becomes nan.
        momentum: weight of the newest batch in ``running_mean_square``.
        warmup: for how many batches ``r`` is 1.
        limit: how far ``r`` may be from 1, as a factor.
        affine: whether to scale and shift.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``window`` or ``limit`` is below 1, or a wrong number of channels.
    """

    exact_gradient: ClassVar[bool] = False
    running_mean_square: Tensor
    past_squares: Tensor
    past_products: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        window: int = 16,
        eps: float = 1e-5,
        momentum: float = 0.02,
        warmup: int = 100,
        limit: float = 5.0,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        for name, value in (("window", window), ("limit", limit)):
            if not value >= 1:
                raise ValueError(
                    f"MovingAverageBatchNorm needs {name} of at least 1; got {value}; "
                    "window=1 is the batch alone, limit=1 keeps r at 1"
                )
        self.window, self.momentum, self.warmup, self.limit = window, momentum, warmup, limit
        history = torch.zeros(window, num_features, device=device, dtype=dtype)
        self.register_buffer("running_mean_square", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("past_squares", history)
        self.register_buffer("past_products", torch.zeros_like(history))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    def reset_running_stats(self) -> None:
        """Forget all batches: mean square 1, the past and the count 0."""
        self.running_mean_square.fill_(1)
        self.past_squares.zero_()
        self.past_products.zero_()
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set ``weight`` to one and ``bias`` to zero, and forget all batches."""
        super().reset_parameters()
        self.reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode the running statistics move."""
        self.check_input(x)
        wide = promote(x)
        if self.training:
            wide, gain = self._by_window(wide)
        else:
            gain = (self.running_mean_square.to(wide.dtype) + self.eps).rsqrt()
        gain = gain if self.weight is None else gain * self.weight.to(gain.dtype)  # two passes over x less
        return affine(wide, gain, self.bias).to(x.dtype)

    def _by_window(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``wide``, whose gradient gets the share of the earlier batches, and ``r / sqrt(chi + eps)``, (C,)."""
        past = self._next_batch(mean_square(wide, batch_dims(wide)).flatten())
        square = past.square + self.eps
        kept, products = wide.detach(), self.past_products  # the buffer of this call: a copy, under functional_call

        def follow(gradient: Tensor) -> None:  # g z = (g / sqrt(chi + eps)) x
            product = (gradient * kept).mean(batch_dims(kept))
            products.copy_(torch.where(past.now, product, products))

        term = -per_channel(past.product / square, wide) * wide
        return add_to_gradient(wide, wide, term, follow), past.scale * square.rsqrt()

    def _next_batch(self, batch: Tensor) -> _Past:
        """Take the batch's mean squares, (C,), into the window and into the running value."""
        count = self.num_batches_tracked.add_(1)
        slots = torch.arange(self.window, device=count.device)
        now, size = (slots == (count - 1) % self.window)[:, None], count.clamp(max=self.window)
        squares = torch.where(now, batch, self.past_squares.to(batch.dtype))
        products = self.past_products.to(batch.dtype).masked_fill(now, 0)
        square = squares.sum(0) / size
        past = _Past(now, square, products.sum(0) / size, self._follow(batch, square))
        self.past_squares.copy_(squares.detach())
        self.past_products.copy_(products)
        return past

    def _follow(self, batch: Tensor, square: Tensor) -> Tensor:
        """Return ``r``, and let the running value follow the batch."""
        before = self.running_mean_square.to(batch.dtype, copy=True)
        ratio = ((square.detach() + self.eps) / (before + self.eps)).sqrt().clamp(1 / self.limit, self.limit)
        factor = self.num_batches_tracked.to(batch.dtype).reciprocal().clamp(min=self.momentum)
        self.running_mean_square.copy_(before + factor * (batch.detach() - before))
        return torch.where(self.num_batches_tracked <= self.warmup, 1.0, ratio)


class _Past(NamedTuple):
    """The place of this batch in the window, (w, 1); chi, the earlier batches' share ``K``, and r, each (C,)."""

    now: Tensor
    square: Tensor
    product: Tensor
    scale: Tensor
