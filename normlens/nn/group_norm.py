"""Group normalization: each sample standardized over groups of channels and over space."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn import native
from normlens.nn.base import Normalization

__all__ = ["GroupNorm", "default_groups"]


class GroupNorm(Normalization):
    """Standardize each sample over groups of neighboring channels and space, then scale and shift channels.

    ``y = weight_c (x - mean_ng) / sqrt(var_ng + eps) + bias_c``; ``mean_ng`` and the biased ``var_ng`` pool the
    channels of group ``g`` and ``*spatial`` of sample ``n``, in train and eval mode alike. With ``eps=0`` and before
    the affine, in each group the channels' means average to 0 and their second moments to 1, but single channels may be
    constant, hence dead behind a ReLU. It is ``torch.nn.GroupNorm(groups, num_features)`` with its state dict, but
    refuses a single value per group.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid for any batch size. Right in every derivative mode except ``is_grads_batched``, where PyTorch's kernel raises.

    Source: Wu and He, ECCV 2018, arXiv:1803.08494, equations 1, 2 and 7.

    Args:
        num_features: ``C``, the channels at dimension 1.
        groups: how many groups, a divisor of ``num_features``; None for :func:`default_groups`.
        eps: added to the variance; with 0 a constant group becomes nan.
        affine: whether to scale and shift.
        device: of the parameters.
        dtype: of the parameters; statistics are taken in at least float32.

    Raises:
        ValueError: ``groups`` does not divide ``num_features``, a wrong number of channels, or one value per group.
    """

    def __init__(
        self,
        num_features: int,
        *,
        groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.groups = default_groups(num_features) if groups is None else groups
        if self.groups < 1 or num_features % self.groups:
            raise ValueError(
                f"GroupNorm needs groups that divide num_features; got num_features={num_features}, groups={groups}; "
                f"choose one of {_divisors(num_features)}, or leave groups out for {default_groups(num_features)}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``."""
        self.check_input(x)
        count = x.shape[1:].numel() // self.groups
        self.check_count(count, x, unit="group", advice="use fewer groups or an input with space")
        return native.group_norm(x, self.groups, self.weight, self.bias, eps=self.eps)


def default_groups(num_features: int) -> int:
    """Largest divisor of ``num_features`` up to 32 (the paper's) that leaves four channels to a group, else 1.

    Of two, without space, nothing is left but which one is larger: the output is 1 and -1.
    """
    return max(g for g in _divisors(num_features) if g <= max(1, min(32, num_features // 4)))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
