"""What the layers share: their settings, parameters and buffers, the checks of their input, and their repr."""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
from torch import Tensor, nn

from normlens.nn.functional import Moments
from normlens.nn.running import averaging_factor, update_running

__all__ = ["Normalization", "RunningNormalization"]


class Normalization(nn.Module):
    """A layer on ``(N, C, *spatial)`` with an optional ``weight`` and ``bias`` per channel, named as in PyTorch.

    A subclass names every setting in its constructor and keeps it as an attribute of the same name: ``repr`` shows just
    these.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; 0 is allowed.
        affine: whether there are parameters at all.
        has_bias: whether there is a ``bias`` beside the ``weight``.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32 all the same.

    Raises:
        ValueError: ``num_features`` is below 1 or ``eps`` below 0.

    Attributes:
        exact_gradient: whether the backward pass is the derivative of the forward pass; False where a paper takes parts
            of it as constants, and the class says which.
        random: whether the forward pass draws from PyTorch's global random state in train mode, as dropout does.
        sensitivity: how many times more than a plain standardization it magnifies the rounding of its input.
    """

    exact_gradient: ClassVar[bool] = True
    random: ClassVar[bool] = False
    sensitivity: ClassVar[float] = 1.0
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float,
        affine: bool,
        has_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if num_features < 1:
            raise ValueError(
                f"{name} needs num_features of at least 1; got {num_features}; give the number of channels"
            )
        if not eps >= 0:
            raise ValueError(f"{name} needs eps of at least 0; got {eps}; use 0 for exact statistics, or 1e-5")
        self.num_features, self.eps, self.affine = num_features, eps, affine
        one = torch.ones(num_features, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(one) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros_like(one)) if affine and has_bias else None)

    def reset_parameters(self) -> None:
        """Set ``weight`` to one and ``bias`` to zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def check_input(self, x: Tensor, *, spatial: bool = False) -> None:
        """Refuse what this layer cannot mean.

        Args:
            x: the input of ``forward``.
            spatial: whether at least one spatial dimension is needed.

        Raises:
            ValueError: ``x`` is not floating point, lacks a dimension, or has another number of channels.
        """
        name, shape = f"{type(self).__name__}({self.num_features})", tuple(x.shape)
        if not x.is_floating_point():
            raise ValueError(f"{name} needs a floating-point input; got {x.dtype}; convert it with .float()")
        if spatial and x.dim() == 2:
            raise ValueError(
                f"{name} needs at least one spatial dimension, (N, C, *spatial); got {shape}, one value per sample and "
                "channel; use LayerNorm, GroupNorm or BatchNorm for (N, C)"
            )
        if x.dim() < 2 or shape[1] != self.num_features:
            raise ValueError(
                f"{name} needs (N, C, *spatial) with {self.num_features} channels at dim 1; got {shape}; "
                "move the channels to dim 1 or build the layer for the channels that came"
            )

    def check_count(self, count: int, x: Tensor, *, unit: str, advice: str) -> None:
        """Refuse to take a variance of fewer than two values, which would normalize everything to zero.

        Args:
            count: how many values each statistic pools.
            x: the input of ``forward``, named in the message.
            unit: what has a statistic of its own, e.g. ``"channel"``.
            advice: what to do instead.

        Raises:
            ValueError: ``count`` is below 2.
        """
        if count < 2:
            name = f"{type(self).__name__}({self.num_features})"
            raise ValueError(
                f"{name} needs more than one value per {unit} to take a variance; got {tuple(x.shape)}, "
                f"{count} per {unit}; {advice}"
            )

    def extra_repr(self) -> str:
        """List the settings by the names the constructor takes."""
        settings = [name for name in inspect.signature(type(self)).parameters if name not in {"device", "dtype"}]
        return ", ".join(f"{name}={getattr(self, name)}" for name in settings).removeprefix("num_features=")


class RunningNormalization(Normalization):
    """A :class:`Normalization` that may keep ``running_mean``, ``running_var`` and ``num_batches_tracked``.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the variance; 0 is allowed.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether there are parameters.
        track_running_stats: whether there are buffers; without them the batch's statistics serve in eval mode too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.momentum, self.track_running_stats = momentum, track_running_stats
        zero = torch.zeros(num_features, device=device, dtype=dtype)
        batches = torch.zeros((), device=device, dtype=torch.long)
        self.register_buffer("running_mean", zero if track_running_stats else None)
        self.register_buffer("running_var", torch.ones_like(zero) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", batches if track_running_stats else None)

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1, count 0."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set ``weight`` to one and ``bias`` to zero, and forget all batches."""
        super().reset_parameters()
        self.reset_running_stats()

    @torch.no_grad()
    def track(self, batch: Moments, *, count: int) -> None:
        """Count a batch and move the running statistics toward it, as constants; does nothing where none are kept.

        Args:
            batch: mean and biased variance of the batch, ``C`` values each in any shape.
            count: how many values each of them pools.
        """
        if self.running_mean is None or self.running_var is None:
            return
        constants = Moments(*(m.detach().flatten() for m in batch))
        running = Moments(self.running_mean, self.running_var)
        moved = update_running(running, constants, count=count, factor=self.count_batch())
        self.running_mean.copy_(moved.mean)
        self.running_var.copy_(moved.var)

    def count_batch(self) -> float:
        """Count one more batch and return its weight in the running statistics; 0 where none are kept."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return averaging_factor(self.momentum, self.num_batches_tracked)
