"""The independent-component layer: batch norm, then dropout, before a layer with weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.functional import promote

__all__ = ["IndependentComponent"]


class IndependentComponent(BatchNorm):
    """Standardize each channel over batch and space, scale and shift it, then set single values to zero at random.

    ``y = g (weight_c (x - mean_c) / sqrt(var_c + eps) + bias_c) / keep_prob`` in train mode, where every value has a
    gate ``g`` of its own, 1 with probability ``keep_prob`` and else 0: the mean over the gates is batch norm. In eval
    mode ``g / keep_prob`` is 1 and the layer is :class:`~normlens.nn.batch_norm.BatchNorm` with the running statistics;
    buffers, parameters and state dict are its own.

    It stands *before* each layer with weights, after the ReLU (ReLU, independent component, weights), where the
    standardization has moved the ReLU's zeros elsewhere and a gate shows. Then ``I(y_i; y_j) = keep_prob^2 I(x_i;
    x_j)`` for the mutual information of two channels, and for their correlation ``keep_prob corr_ij / sqrt((1 + d b_i^2
    / w_i^2) (1 + d b_j^2 / w_j^2))`` with ``d = 1 - keep_prob``, weights ``w`` and biases ``b``: just ``keep_prob
    corr_ij`` where the biases are 0. Neither holds for a gate shared by a channel, as ``torch.nn.Dropout2d`` has. What
    is gained in independence is paid in information on the label, which each value loses at the same rate.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid in train mode from two values per channel on. The gates come from PyTorch's global random state, as dropout's
    do: the same for all dtypes, and repeatable by its seed. Their variance is not in the running statistics of this
    layer, but in those of the next: there, without biases, it is ``1 / keep_prob`` times that of eval mode.

    Source: Chen, Chen, Shi, Hsieh, Liao and Zhang, 2019, arXiv:1905.05928, which has the two laws (as recalled) without
    this scope. The shift of variance: Li, Chen, Hu and Yang, CVPR 2019, arXiv:1801.05134.

    Args:
        num_features: ``C``, the channels at dimension 1.
        keep_prob: probability that a value stays, in (0, 1]; not that of ``torch.nn.Dropout``, which is ``1 -
            keep_prob``. The default is from memory of the paper.
        eps: added to the variance; with 0 a constant channel becomes 0 or nan, as PyTorch's kernel has it.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``keep_prob`` is not in (0, 1], a wrong number of channels, or one value per channel where the
            batch's statistics are used.
    """

    random: ClassVar[bool] = True

    def __init__(
        self,
        num_features: int,
        *,
        keep_prob: float = 0.95,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )
        if not 0 < keep_prob <= 1:
            raise ValueError(
                f"IndependentComponent needs keep_prob in (0, 1]; got {keep_prob}; it is the probability to stay: 1 "
                "less the p of torch.nn.Dropout"
            )
        self.keep_prob = keep_prob

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``; in train mode drop values, and the running statistics move."""
        y = super().forward(x)
        if not self.training or self.keep_prob == 1:
            return y
        # Always drawn in float32: on a GPU the draws of one seed differ from dtype to dtype.
        # Comparing uniform draws takes half the time of bernoulli_ on a CPU.
        gates = torch.empty_like(y, dtype=torch.float32).uniform_().lt_(self.keep_prob)
        return (promote(y) * gates.div_(self.keep_prob)).to(y.dtype)
