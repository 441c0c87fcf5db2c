"""Divisive normalization: each unit less the mean of its neighbors, divided by their and a constant's strength."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.base import Normalization
from normlens.nn.functional import affine, cast, promote, spatial_dims

__all__ = ["DivisiveNorm"]


class DivisiveNorm(Normalization):
    """Subtract the mean of a neighborhood, divide by the strength of a neighborhood, then scale and shift channels.

    ``y = weight_c v / sqrt(sigma^2 + B(v^2)) + bias_c`` with ``v = x - A(x)``, in train and eval mode alike. ``A`` and
    ``B``, the summation and suppression field, average over a window about each place in space and all channels of a
    sample; in ``(N, C)``, which has no space, over a window of channels. With both windows None, hence over all of a
    sample, it is layer norm with ``eps = sigma^2``. A large ``sigma`` makes it linear, and unlike a tiny ``eps`` keeps
    the derivative at a constant input, ``weight / sigma``, moderate.

    The paper also pulls ``v`` toward sparseness by an L1 term in the loss; :meth:`centered_l1` is that term::

        terms = []
        layer.register_forward_pre_hook(lambda layer, inputs: terms.append(layer.centered_l1(*inputs)))
        loss = criterion(model(x), y) + alpha * sum(terms)

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; ``sigma`` has the units of ``x``, the output none before
    ``weight`` and ``bias``.

    Valid for any batch size from two values per summation field on. Right in every derivative mode.

    Source: Ren, Liao, Urtasun, Sinz and Zemel, ICLR 2017, arXiv:1611.04520. Its code divides the window at a border by
    the full area (``count_include_pad=True``) and the suppression by the area of the other window; here each window is
    divided by its own.

    Args:
        num_features: ``C``, the channels at dimension 1.
        sum_window: odd width of ``A`` along each dimension of space (or the channels of ``(N, C)``); None for all.
        sup_window: odd width of ``B`` likewise.
        sigma: takes the place of ``eps``; with 0 a constant neighborhood becomes nan.
        learn_sigma: whether ``sigma`` is trained, as the parameter ``learned_sigma``.
        count_include_pad: whether a window at a border counts what lies outside as zeros.
        affine: whether to scale and shift.
        device: of the parameters.
        dtype: of the parameters; statistics are taken in at least float32.

    Raises:
        ValueError: a window that is not odd, a negative ``sigma`` or one of 0 to be learned, a wrong number of
            channels, or one value per summation field.
    """

    learned_sigma: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        sum_window: int | None = 5,
        sup_window: int | None = 5,
        sigma: float = 1.0,
        learn_sigma: bool = False,
        count_include_pad: bool = False,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=0.0, affine=affine, device=device, dtype=dtype)
        self.sum_window, self.sup_window = sum_window, sup_window
        self.sigma, self.learn_sigma, self.count_include_pad = sigma, learn_sigma, count_include_pad
        self._check_settings()
        learned = nn.Parameter(torch.full((), sigma, device=device, dtype=dtype or torch.get_default_dtype()))
        self.register_parameter("learned_sigma", learned if learn_sigma else None)

    def _check_settings(self) -> None:
        for name, window in (("sum_window", self.sum_window), ("sup_window", self.sup_window)):
            if window is not None and (window < 1 or window % 2 == 0):
                raise ValueError(
                    f"DivisiveNorm needs an odd {name}, with as much on either side; got {window}; use an odd one, or "
                    "None for everything"
                )
        if not self.sigma >= 0:
            raise ValueError(f"DivisiveNorm needs sigma of at least 0; got {self.sigma}; sigma^2 is what counts")
        if self.learn_sigma and self.sigma == 0:
            raise ValueError(
                "DivisiveNorm needs sigma above 0 to learn it, for its gradient is proportional to it; got 0; start at "
                "0.01 or 1"
            )

    def reset_parameters(self) -> None:
        """Set ``weight`` to one, ``bias`` to zero and ``learned_sigma`` to ``sigma``."""
        super().reset_parameters()
        if self.learned_sigma is not None:
            nn.init.constant_(self.learned_sigma, self.sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``."""
        self.check_input(x)
        advice = "widen sum_window, or use LayerNorm or BatchNorm"
        self.check_count(self._field_size(x), x, unit="summation field", advice=advice)
        v = self._centered(x)
        sigma = cast(self.learned_sigma, v)
        floor = self.sigma**2 if sigma is None else sigma.square()
        y = v / (self._field_mean(v.square(), self.sup_window) + floor).sqrt()
        return affine(y, self.weight, self.bias).to(x.dtype)

    def centered_l1(self, x: Tensor) -> Tensor:
        """Mean of ``|x - A(x)|`` over all of ``x``: the paper's L1 term, to be weighted and added to the loss.

        Args:
            x: what goes into the layer, ``(N, C, *spatial)``.

        Returns:
            A scalar in the units of ``x``, at least float32.
        """
        self.check_input(x)
        return self._centered(x).abs().mean()

    def _centered(self, x: Tensor) -> Tensor:
        wide = promote(x)
        return wide - self._field_mean(wide, self.sum_window)

    def _field_size(self, x: Tensor) -> int:
        """How many values the largest summation field holds."""
        lengths = x.shape[2:] or x.shape[1:]
        seen = [length if self.sum_window is None else min(length, self.sum_window) for length in lengths]
        return torch.Size(seen).numel() * (x.shape[1] if x.dim() > 2 else 1)

    def _field_mean(self, x: Tensor, window: int | None) -> Tensor:
        if x.dim() == 2:
            return _window_mean(x, 1, window, include_pad=self.count_include_pad)
        mean = x.mean(1, keepdim=True)
        for dim in spatial_dims(x):  # the mean over a box is that of the means along its sides, also at a border
            mean = _window_mean(mean, dim, window, include_pad=self.count_include_pad)
        return mean


def _window_mean(x: Tensor, dim: int, window: int | None, *, include_pad: bool) -> Tensor:
    """Mean over a centered window along one dimension, or over all of it (which then stays as a one).

    Shifted copies are added up: pooling kernels take half as long again, and running sums lose the digits of a mean.
    """
    if window is None:
        return x.mean(dim, keepdim=True)
    half, length = window // 2, x.shape[dim]
    reach = min(half, length - 1)
    padded = F.pad(x.movedim(dim, -1), (reach, reach))
    total = padded.narrow(-1, 0, length)
    for shift in range(1, 2 * reach + 1):
        total = total + padded.narrow(-1, shift, length)
    before = torch.arange(length, device=x.device)
    inside = before.clamp(max=half) + before.flip(0).clamp(max=half) + 1
    return (total / (window if include_pad else inside)).movedim(-1, dim)
