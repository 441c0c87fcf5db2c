"""PyTorch's fast kernels with their traps removed: what the layers run on.

All of them are right under double backward, ``jvp(grad)`` and ``linearize(grad)`` (seen on a CPU). Two traps remain and
cannot be removed here. Batch norm on batch statistics is silently wrong under ``jvp(jacrev)``, hence
``torch.func.hessian``, ``grad(jvp)`` and ``jvp(jvp)`` (pytorch/pytorch#196699, measured up to 56 % on torch 2.13);
group norm with space raises under ``is_grads_batched``. :mod:`normlens.nn.functional` is right in each of these modes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.nn.forward_mode import has_tangent, in_forward_mode
from normlens.nn.functional import affine, cast, mean_square, per_channel, promote, sample_dims
from normlens.nn.rms_rows import has_kernel, rms_rows

__all__ = ["batch_norm", "group_norm", "rms_norm"]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    training: bool,
    factor: float,
    eps: float,
) -> Tensor:
    """Batch norm of ``(N, C, *spatial)`` in at least float32; in training it moves the running statistics in place.

    ``torch.batch_norm`` rather than ``torch.nn.functional.batch_norm``, which refuses ``eps=0`` in training. The memory
    format stays as it came; on a CPU the channels-last kernel adds up in float32 one by one, so that a batch of a
    quarter of a million values per channel is off by 2e-4 where the contiguous kernel is off by 5e-7.
    """
    wide = promote(x)
    mean, var = cast(running_mean, wide), cast(running_var, wide)
    cudnn = torch.backends.cudnn.enabled
    y = torch.batch_norm(wide, cast(weight, wide), cast(bias, wide), mean, var, training, factor, eps, cudnn)
    if training:
        _write_back(mean, running_mean)
        _write_back(var, running_var)
    return y.to(x.dtype)


def _write_back(moved: Tensor | None, buffer: Tensor | None) -> None:
    if moved is not None and buffer is not None and moved is not buffer:  # the kernel moved a copy in a wider dtype
        buffer.copy_(moved)


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """Group norm of ``(N, C, *spatial)`` in at least float32; layer norm is ``groups=1``, instance norm ``groups=C``.

    Its kernel serves all three because it alone is right in every nesting of forward and reverse mode. The input is
    made contiguous: the channels-last kernel takes the variance as ``E[x^2] - mean^2`` in float32, wrong by 9 % at a
    mean of 1000 standard deviations.
    """
    wide = promote(x).contiguous()
    if wide.dim() == 2 and not has_tangent(wide):
        return _group_norm_of_rows(wide, groups, weight, bias, eps).to(x.dtype)
    return F.group_norm(wide, groups, cast(weight, wide), cast(bias, wide), eps).to(x.dtype)


def _group_norm_of_rows(wide: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm without space, where a group is a row of memory, by the kernel for rows, several times as fast.

    That kernel is wrong by up to 80 % where forward mode is within another derivative, ``grad(jvp)`` or ``jvp(jvp)``,
    hence not for tensors with a tangent; and given a weight by as much under ``jvp(jacrev)``, hence with one only where
    there is no forward mode at all.
    """
    if groups == 1 and not in_forward_mode():
        return F.layer_norm(wide, wide.shape[1:], cast(weight, wide), cast(bias, wide), eps)
    rows = wide.view(len(wide), groups, -1)
    return affine(F.layer_norm(rows, rows.shape[2:], None, None, eps).view_as(wide), weight, bias)


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """Root mean square norm of ``(N, C, *spatial)`` over channels and space, in at least float32; scale per channel."""
    wide = promote(x)
    if weight is not None and has_kernel(wide, weight):
        columns = weight.to(wide.dtype).view(-1, 1).expand(wide.shape[1], wide.shape[2:].numel()).reshape(-1)
        return rms_rows(wide.flatten(1).contiguous(), columns, eps).view_as(wide).to(x.dtype)
    inverse = (mean_square(wide, sample_dims(wide)) + eps).rsqrt()
    return (wide * (inverse if weight is None else inverse * per_channel(weight.to(wide.dtype), wide))).to(x.dtype)
