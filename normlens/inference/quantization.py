"""Quantized batch norm: a scale and a shift in integers, with the very results of the rounded real numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from normlens.inference.fixed_point import FixedPointAffine, Real, quantize_affine, rounding_thresholds
from normlens.inference.folding import eval_affine

__all__ = ["FixedPointAffine", "QuantizedBatchNorm", "quantize_affine", "quantize_channels"]


def quantize_channels(
    scales: Sequence[Real],
    shifts: Sequence[Real],
    x_max: int,
    y_min: int | None = None,
    y_max: int | None = None,
    *,
    max_shift: int = 31,
) -> list[FixedPointAffine]:
    """Quantize one affine map per channel with one shift for all of them: the largest of their minimal ones.

    What is exact at a shift is so at every larger one (``2 K`` and ``2 B`` do the same), so the common shift is the
    least with which all channels are exact.

    Args:
        scales: ``k`` of each channel.
        shifts: ``b`` of each channel.
        x_max: see :func:`quantize_affine`.
        y_min: see there.
        y_max: see there.
        max_shift: see there.

    Raises:
        ValueError: see there.
    """
    every = [
        quantize_affine(k, b, x_max, y_min, y_max, max_shift=max_shift) for k, b in zip(scales, shifts, strict=True)
    ]
    common = max((one.shift for one in every), default=0)
    pairs = zip(every, scales, shifts, strict=True)
    return [
        one if one.shift == common
        else rounding_thresholds(k, b, x_max, y_min, y_max).at(common)
        for one, k, b in pairs
    ]  # fmt: skip


class QuantizedBatchNorm(nn.Module):
    r"""Batch norm in eval mode on integers: a multiplication, an addition and a shift.

    .. math:: y = \operatorname{clip}\left((K_c x + B_c + 2^{n-1}) \gg n\right)
        = \operatorname{clip}\lfloor k_c x + b_c + \tfrac12 \rfloor \quad\text{for all } |x| \le X,

    with :math:`k = \gamma s_x / (s_y \sqrt{\sigma^2 + \epsilon})`, :math:`b = (\beta - \gamma\mu/\sqrt{\sigma^2 +
    \epsilon}) / s_y` for inputs in units of :math:`s_x` and outputs in units of :math:`s_y` (one LSB each); ``>>`` is
    the arithmetic shift, which rounds down, and for ``n = 0`` the :math:`2^{n-1}` is left out. ``n`` is the least
    common shift with which both sides agree, see :func:`quantize_channels`. Halves round up.

    Shapes: integers ``(N, C, *spatial)`` to the same, as int64.

    Source: Lin, Sun, Xie, Zhou and Zhang, arXiv:2008.13128, without code; bounds and search are ours.

    Args:
        channels: the integers of each channel, of one shift.
        x_max: ``X``, the largest input in magnitude.
        y_min: below which the output is clipped; None for no limit.
        y_max: above which it is.

    Raises:
        ValueError: there is no channel, or the shifts differ; in ``forward`` an input that is no integer, has another
            number of channels, or leaves ``[-x_max, x_max]``.

    Attributes:
        shift: ``n``.
        inexact: in how many channels the equation above fails for some admissible input.
    """

    multiplier: Tensor
    offset: Tensor

    def __init__(
        self, channels: Sequence[FixedPointAffine], x_max: int, y_min: int | None = None, y_max: int | None = None
    ) -> None:
        super().__init__()
        shifts = {channel.shift for channel in channels}
        if len(shifts) != 1:
            raise ValueError(
                f"QuantizedBatchNorm needs one shift for all of its channels, and one channel at least; got shifts "
                f"{sorted(shifts)}; make them with quantize_channels"
            )
        self.shift, self.inexact = shifts.pop(), sum(not channel.exact for channel in channels)
        self.x_max, self.y_min, self.y_max = x_max, y_min, y_max
        self.register_buffer("multiplier", torch.tensor([channel.multiplier for channel in channels]))
        self.register_buffer("offset", torch.tensor([channel.offset for channel in channels]))

    @classmethod
    def from_float(
        cls,
        norm: nn.Module,
        input_scale: float,
        output_scale: float,
        x_max: int = 128,
        y_min: int | None = None,
        y_max: int | None = None,
        *,
        max_shift: int = 31,
    ) -> Self:
        """Quantize a batch norm as it stands in eval mode.

        Args:
            norm: which ones see :func:`normlens.inference.folding.eval_affine`.
            input_scale: what one step of the integer input stands for.
            output_scale: what one step of the integer output stands for.
            x_max: the largest integer input in magnitude; 128 holds all of int8.
            y_min: see the class.
            y_max: see the class.
            max_shift: the largest shift that is tried.

        Raises:
            ValueError: another kind of layer, a scale that is not above 0, or what :func:`quantize_affine` refuses.
        """
        if not (0 < input_scale < math.inf and 0 < output_scale < math.inf):
            raise ValueError(
                f"QuantizedBatchNorm needs scales above 0 and finite; got input_scale={input_scale}, "
                f"output_scale={output_scale}; take the largest magnitude by the largest integer"
            )
        scale, shift = eval_affine(norm, what="QuantizedBatchNorm")
        k, b = (scale * (input_scale / output_scale)).tolist(), (shift / output_scale).tolist()
        made = cls(quantize_channels(k, b, x_max, y_min, y_max, max_shift=max_shift), x_max, y_min, y_max)
        return made.to(scale.device)

    def forward(self, x: Tensor) -> Tensor:
        """Scale, shift and round integers ``(N, C, *spatial)``."""
        self._check(x)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        y = self.multiplier.view(shape) * x.long() + self.offset.view(shape)
        y = (y + (1 << self.shift >> 1)) >> self.shift
        return y if self.y_min is None and self.y_max is None else y.clamp(self.y_min, self.y_max)

    def extra_repr(self) -> str:
        """List the channels, the shift and the ranges."""
        return (
            f"{len(self.multiplier)}, shift={self.shift}, x_max={self.x_max}, y_min={self.y_min}, y_max={self.y_max}, "
            f"inexact={self.inexact}"
        )

    def _check(self, x: Tensor) -> None:
        name, channels = type(self).__name__, len(self.multiplier)
        if x.is_floating_point() or x.is_complex():
            raise ValueError(f"{name} needs an integer input; got {x.dtype}; divide by input_scale and round it")
        if x.dim() < 2 or x.shape[1] != channels:
            raise ValueError(f"{name} needs (N, C, *spatial) with {channels} channels at dim 1; got {tuple(x.shape)}; "
                             "move the channels to dim 1")  # fmt: skip
        if x.numel() and int(x.long().abs().max()) > self.x_max:
            raise ValueError(f"{name} is exact for inputs up to x_max={self.x_max} in magnitude; got "
                             f"{int(x.long().abs().max())}; clip the input or quantize for a larger x_max")  # fmt: skip
