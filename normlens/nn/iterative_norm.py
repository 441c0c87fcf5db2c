"""Iterative normalization: groups of channels whitened over the batch and over space by a few Newton steps."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.nn.decorrelated_batch_norm import DecorrelatedBatchNorm, Remembered, default_group_size

__all__ = ["IterativeNorm", "newton_inverse_root"]


class IterativeNorm(DecorrelatedBatchNorm):
    """Whiten each group of neighboring channels partly, weak directions least, then scale and shift channels.

    ``y = weight_c (W_g (x - mean_g))_c + bias_c`` with ``W_g = P_T / sqrt(t_g)``, ``t_g = trace(cov_g + eps I)``,
    ``P_0 = I`` and ``P_k+1 = (3 P_k - P_k^3 (cov_g + eps I) / t_g) / 2``: Newton's way to the inverse root that
    :class:`~normlens.nn.decorrelated_batch_norm.DecorrelatedBatchNorm` takes whole. A direction that holds the share
    ``s`` of the variance comes out with a standard deviation ``sqrt(s) p_T(s) <= 1``: at ``T = 5`` 0.659 for
    ``s = 0.01`` and 0.237 for ``s = 0.001``. ``mean_g`` and the biased ``cov_g`` pool ``(N, *spatial)``; eval mode uses
    ``running_mean`` and, as ``running`` says, ``running_matrix`` (the average of the ``W_g``, as the paper's code does)
    or ``P_T`` of ``running_cov``. Groups of one are batch norm, whatever ``T``.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid in train mode from two values per channel on. Right in every derivative mode; a sample's output depends on its
    batch.

    Source: Huang, Zhou, Zhu, Liu and Shao, CVPR 2019, arXiv:1904.03441. Its code shrinks groups silently where they do
    not divide the channels; here that is refused.

    Args:
        num_features: ``C``, the channels at dimension 1.
        group_size: channels per group, a divisor of ``num_features``; None for the largest one up to 64.
        num_iterations: ``T``; 0 divides by the root of the trace alone.
        eps: added to the variances before the trace; with 0 a constant group becomes nan.
        momentum: weight of the newest batch in the running statistics; None averages all batches alike.
        affine: whether to scale and shift.
        running: what is averaged for eval mode, "matrix" or "covariance".
        track_running_stats: without running statistics eval mode uses the batch's too.
        device: of parameters and buffers.
        dtype: of parameters and buffers; statistics are taken in at least float32.

    Raises:
        ValueError: ``num_iterations`` is negative, ``group_size`` does not divide ``num_features``, ``running`` is
            neither of the two, a wrong number of channels, or one value per channel where the batch's statistics are
            used.
    """

    def __init__(
        self,
        num_features: int,
        *,
        group_size: int | None = None,
        num_iterations: int = 5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        running: Remembered = "matrix",
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            group_size=default_group_size(num_features, limit=64) if group_size is None else group_size,
            eps=eps,
            momentum=momentum,
            affine=affine,
            running=running,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )
        if num_iterations < 0:
            raise ValueError(
                f"IterativeNorm needs num_iterations of at least 0; got {num_iterations}; use 5, or more to whiten more"
            )
        self.num_iterations = num_iterations

    def whitening_matrix(self, cov: Tensor) -> Tensor:
        """Return ``W = P_T / sqrt(trace)`` of covariances ``(groups, group_size, group_size)``."""
        cov = cov + self.eps * torch.eye(self.group_size, device=cov.device, dtype=cov.dtype)
        trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        return newton_inverse_root(cov / trace, self.num_iterations) / trace.sqrt()

    def check_rank(self, count: int, x: Tensor) -> None:
        """Refuse a single value per channel; a singular covariance is no harm here.

        Args:
            count: values per channel.
            x: the input of ``forward``, named in the message.
        """
        advice = "use a larger batch, or running statistics (track_running_stats=True and .eval())"
        self.check_count(count, x, unit="channel", advice=advice)


def newton_inverse_root(matrix: Tensor, iterations: int) -> Tensor:
    """``P_T`` of ``P_0 = I``, ``P_k+1 = (3 P_k - P_k^3 A) / 2``, which tends to ``A^(-1/2)`` quadratically.

    It keeps ``P_k A`` beside ``P_k``: no more products, and rounding does not grow. Taken literally ``P_k^3 A`` lets it
    grow near the root by ``(r^2 + r - 2) / 2`` a step, ``r^2`` being the condition number of ``A``, and so diverges.

    Args:
        matrix: symmetric ``A`` of shape ``(..., d, d)`` with eigenvalues between 0 and 1.
        iterations: ``T``.
    """
    eye = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype).expand_as(matrix)
    if iterations == 0:
        return eye
    inverse = 1.5 * eye - 0.5 * matrix  # of the first step, whose products are with the identity
    product = matrix @ inverse
    for left in reversed(range(iterations - 1)):
        step = 1.5 * eye - 0.5 * (inverse @ product)
        inverse = step @ inverse
        product = product @ step if left else product  # the last one would serve no further step
    return inverse
