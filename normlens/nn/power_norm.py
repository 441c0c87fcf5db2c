"""Power normalization: each channel divided by a running root mean square, with a running term in its gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from normlens.nn.base import Normalization
from normlens.nn.extra_gradient import add_to_gradient
from normlens.nn.functional import affine, batch_dims, mean_square, per_channel, promote

__all__ = ["PowerNorm"]


class PowerNorm(Normalization):
    r"""Divide each channel by its running root mean square over batch and space, then scale and shift it.

    ``y = weight_c x^ + bias_c`` with ``x^ = x / sqrt(psi_c + eps)``, ``psi = running_mean_square`` as it stood before
    the batch; the mean is not removed. Then ``psi' = (1 - momentum) psi + momentum ms`` with ``ms`` the mean of ``x^2``
    over ``(N, *spatial)``; the first ``1 / momentum`` batches count alike. During the first ``warmup`` batches ``ms``
    stands in for ``psi`` in the output.

    **The backward pass is not the derivative of the forward pass, by design.** With ``g = dL/dx^``, ``b =
    backward_momentum`` and ``nu = gradient_moment`` of each channel it is ``dL/dx = (g - b nu x^) / sqrt(psi + eps)``,
    and then ``nu' = nu + mean((g - b nu x^) x^)``: what batch statistics would take from the gradient, averaged over
    batches; ``b nu`` is the paper's ``nu``. It is the gradient of ``L - b/2 sum_c nu_c sum x^^2`` at constant ``psi``
    and ``nu``, and its second derivatives are those of this function; differences of gradients, which see ``ms`` move,
    come to other numbers while warming up. The term in ``nu`` enters the first backward pass through each forward pass
    alone, which moves ``nu``, too: see :func:`normlens.nn.extra_gradient.add_to_gradient`.

    In eval mode ``psi`` is constant, nothing moves, and the gradient is exact.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid for any batch size and for a single value.

    Source: Shen, Yao, Gholami, Mahoney and Keutzer, ICML 2020, arXiv:2003.07845, algorithm of PN. The published code
    divides by the root mean square of each group of channels before, divides the gradient by the batch's ``sqrt(ms +
    eps)`` where the output was divided by the running one, and warms up for 10000 batches.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the mean square; with 0 a channel of zeros becomes nan.
        momentum: weight of the newest batch in ``running_mean_square``; the paper's ``1 - alpha``.
        backward_momentum: weight of the newest batch in the running term of the gradient.
        warmup: how many batches are divided by their own root mean square.
        affine: whether to scale and shift.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: a wrong number of channels.
    """

    exact_gradient: ClassVar[bool] = False
    running_mean_square: Tensor
    gradient_moment: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        backward_momentum: float = 0.1,
        warmup: int = 100,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.momentum, self.backward_momentum, self.warmup = momentum, backward_momentum, warmup
        self.register_buffer("running_mean_square", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("gradient_moment", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    def reset_running_stats(self) -> None:
        """Forget all batches: mean square 1, moment of the gradient 0, count 0."""
        self.running_mean_square.fill_(1)
        self.gradient_moment.zero_()
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
            batch = mean_square(wide.detach(), batch_dims(wide)).flatten()
            inverse = (self._next_square(batch) + self.eps).rsqrt()
            wide = self._with_running_gradient(wide, inverse, batch)
        else:
            inverse = (self.running_mean_square.to(wide.dtype) + self.eps).rsqrt()
        gain = inverse if self.weight is None else inverse * self.weight.to(inverse.dtype)  # one pass over x less
        return affine(wide, gain, self.bias).to(x.dtype)

    def _next_square(self, batch: Tensor) -> Tensor:
        """Return what this batch is divided by, squared, and let the running value follow the batch; all (C,)."""
        before = self.running_mean_square.to(batch.dtype, copy=True)
        count = self.num_batches_tracked.add_(1)
        factor = count.to(batch.dtype).reciprocal().clamp(min=self.momentum)
        self.running_mean_square.copy_(before + factor * (batch - before))
        return torch.where(count <= self.warmup, batch, before)

    def _with_running_gradient(self, wide: Tensor, inverse: Tensor, batch: Tensor) -> Tensor:
        """Return ``wide``, whose gradient gets the term in ``nu``."""
        moment = self.gradient_moment  # the buffer of this call: a copy, under functional_call
        pull = self.backward_momentum * moment.to(wide.dtype, copy=True) * inverse.square()
        kept, own = wide.detach(), (pull * batch).detach()

        def follow(gradient: Tensor) -> None:  # g x^ = (g / sqrt(psi + eps)) x
            moment.copy_(moment + (gradient * kept).mean(batch_dims(kept)) - own)

        return add_to_gradient(wide, wide, -per_channel(pull, wide) * wide, follow)
