"""The statistics of normalization spelled out in elementary operations: reference and base of every layer.

Everything here is a pure function of tensors shaped ``(N, C, *spatial)``, right under every derivative mode of PyTorch
(the native kernels are not: see :mod:`normlens.nn.native`). Statistics keep their reduced dimensions as ones, so that
any two of them add and any of them broadcasts against its input; they are at least float32 whatever came in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normlens.nn import squares

__all__ = [
    "Moments",
    "affine",
    "affine_standardize",
    "batch_dims",
    "batch_moments",
    "batch_norm",
    "cast",
    "centered_moments",
    "channel_matrix",
    "from_channel_matrix",
    "group_moments",
    "group_norm",
    "instance_moments",
    "instance_norm",
    "layer_moments",
    "layer_norm",
    "mean_square",
    "moments",
    "per_channel",
    "promote",
    "rms_norm",
    "sample_dims",
    "spatial_dims",
    "split_groups",
    "standardize",
]


class Moments(NamedTuple):
    """A mean and a biased variance (divided by the count), of one shape."""

    mean: Tensor
    var: Tensor


def promote(x: Tensor) -> Tensor:
    """Return ``x`` in a dtype fit for statistics: float16 and bfloat16 become float32, float32 and float64 stay.

    A variance leaves the range of float16 at a standard deviation of 256; the normalized output is then a finite zero.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cast(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """Return ``tensor`` in the dtype of ``like``, and None for None; the very same object when nothing is to do."""
    return None if tensor is None else tensor.to(like.dtype)


def batch_dims(x: Tensor) -> tuple[int, ...]:
    """Dimensions pooled by batch norm: the batch and all of space, ``(0, 2, 3, ...)``."""
    return (0, *range(2, x.dim()))


def sample_dims(x: Tensor) -> tuple[int, ...]:
    """Dimensions pooled by layer norm: the channels and all of space, ``(1, 2, 3, ...)``."""
    return tuple(range(1, x.dim()))


def spatial_dims(x: Tensor) -> tuple[int, ...]:
    """Dimensions pooled by instance norm: all of space, ``(2, 3, ...)``; empty for ``(N, C)``."""
    return tuple(range(2, x.dim()))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View ``(C,)`` values as ``(1, C, 1, ...)``, which broadcasts against ``x`` of shape ``(N, C, *spatial)``."""
    return values.reshape(1, -1, *(1,) * (x.dim() - 2))


def channel_matrix(x: Tensor) -> Tensor:
    """Lay ``(N, C, *spatial)`` out as ``(C, M)``: one row per channel, one column per sample and position."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def from_channel_matrix(matrix: Tensor, x: Tensor) -> Tensor:
    """Lay a ``(C, M)`` matrix out as ``x`` is, ``(N, C, *spatial)``: the inverse of :func:`channel_matrix`."""
    return matrix.reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def split_groups(x: Tensor, groups: int) -> Tensor:
    """View ``(N, C, *spatial)`` as ``(N, groups, C / groups, *spatial)``: neighboring channels share a group.

    Raises:
        ValueError: ``groups`` does not divide the number of channels.
    """
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"groups must divide the number of channels; got {channels} channels and groups={groups}; "
            f"choose one of {[g for g in range(1, channels + 1) if channels % g == 0]}"
        )
    return x.reshape(x.shape[0], groups, channels // groups, *x.shape[2:])


def mean_square(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean of ``x^2`` over ``dims``, which stay as ones; about a center ``c`` it is ``mean_square(x - c, dims)``."""
    return squares.mean_square(promote(x), dims)


def moments(x: Tensor, dims: tuple[int, ...]) -> Moments:
    """Mean and biased variance over ``dims``, which stay as ones.

    ``mean = E[x]``, ``var = E[(x - mean)^2]``, in two passes: the one-pass ``E[x^2] - mean^2`` loses all digits of the
    variance once ``(mean / std)^2`` nears ``1 / eps`` of the dtype, which in float32 is a mean of 3000 standard
    deviations.
    """
    return centered_moments(x, dims)[1]


def centered_moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Moments]:
    """Return ``x`` less its mean over ``dims``, and :func:`moments`: the difference is needed for them anyway."""
    wide = promote(x)
    mean = wide.mean(dims, keepdim=True)
    centered = wide - mean
    return centered, Moments(mean, mean_square(centered, dims))


def batch_moments(x: Tensor) -> Moments:
    """Moments of each channel over batch and space, shaped ``(1, C, 1, ...)``; flatten them to get ``(C,)``."""
    return moments(x, batch_dims(x))


def layer_moments(x: Tensor) -> Moments:
    """Moments of each sample over channels and space, shaped ``(N, 1, 1, ...)``."""
    return moments(x, sample_dims(x))


def group_moments(x: Tensor, groups: int) -> Moments:
    """Moments of each sample over one group of channels and space, repeated for its channels: ``(N, C, 1, ...)``.

    Raises:
        ValueError: ``groups`` does not divide the number of channels.
    """
    grouped = split_groups(x, groups)
    of_group = moments(grouped, tuple(range(2, grouped.dim())))
    return Moments(*(m.squeeze(2).repeat_interleave(grouped.shape[2], dim=1) for m in of_group))


def instance_moments(x: Tensor) -> Moments:
    """Moments of each sample and channel over space, shaped ``(N, C, 1, ...)``.

    Raises:
        ValueError: ``x`` has no spatial dimension.
    """
    if x.dim() < 3:
        raise ValueError(
            f"instance moments need at least one spatial dimension, (N, C, *spatial); got {tuple(x.shape)}; "
            "use batch, layer or group moments for (N, C)"
        )
    return moments(x, spatial_dims(x))


def standardize(x: Tensor, mean: Tensor, var: Tensor, eps: float = 0.0) -> Tensor:
    """Shift and scale: ``(x - mean) / sqrt(var + eps)``, in at least float32.

    With ``eps=0`` a constant is ``0 / 0``: the output and its gradient are nan there, as they are in PyTorch.
    """
    return (promote(x) - mean) / (var + eps).sqrt()


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift channels: ``y = weight * x + bias`` with ``(C,)`` parameters, None standing for 1 and 0.

    The output has the dtype of ``x``, whatever that of the parameters.
    """
    gain = None if weight is None else per_channel(weight.to(x.dtype), x)
    shift = None if bias is None else per_channel(bias.to(x.dtype), x)
    if gain is None:
        return x if shift is None else x + shift
    return x * gain if shift is None else torch.addcmul(shift, x, gain)


def affine_standardize(
    centered: Tensor, center: Tensor, by: Moments, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return ``weight (x - mean) / sqrt(var + eps) + bias`` of ``x = centered + center``, in two passes over the data.

    Args:
        centered: ``x`` about a center near its mean, which keeps all digits.
        center: that center, ``(C,)``.
        by: the mean and variance, ``(C,)`` each.
        weight: ``(C,)``, or None for 1.
        bias: ``(C,)``, or None for 0.
        eps: added to the variance.
    """
    gain = (by.var + eps).rsqrt()
    gain = gain if weight is None else gain * weight.to(gain.dtype)
    shift = (center - by.mean) * gain
    return affine(centered, gain, shift if bias is None else shift + bias.to(gain.dtype))


def batch_norm(
    x: Tensor,
    running: Moments | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization (Ioffe and Szegedy 2015) by the moments of the batch, or by ``running`` ones of ``(C,)``."""
    mean, var = batch_moments(x) if running is None else (per_channel(promote(v), x) for v in running)
    return affine(standardize(x, mean, var, eps), weight, bias).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Layer normalization (Ba, Kiros and Hinton 2016) of each sample over channels and space; affine per channel."""
    return affine(standardize(x, *layer_moments(x), eps), weight, bias).to(x.dtype)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Group normalization (Wu and He 2018) of each sample over groups of neighboring channels and space.

    Raises:
        ValueError: ``groups`` does not divide the number of channels.
    """
    return affine(standardize(x, *group_moments(x, groups), eps), weight, bias).to(x.dtype)


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Instance normalization (Ulyanov, Vedaldi and Lempitsky 2016) of each sample and channel over space.

    Raises:
        ValueError: ``x`` has no spatial dimension.
    """
    return affine(standardize(x, *instance_moments(x), eps), weight, bias).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Root mean square normalization (Zhang and Sennrich 2019) of each sample over channels and space."""
    wide = promote(x)
    return affine(wide / (mean_square(wide, sample_dims(x)) + eps).sqrt(), weight, None).to(x.dtype)
