"""Filter response normalization, and the thresholded activation that it is made for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normlens.nn.base import Normalization
from normlens.nn.functional import affine as scale_and_shift
from normlens.nn.functional import mean_square, per_channel, promote

__all__ = ["FilterResponseNorm", "ThresholdedLinearUnit"]


class FilterResponseNorm(Normalization):
    """Divide each channel of each sample by its root mean square over space, then scale and shift it.

    ``y = weight_c x / sqrt(ms_nc + |eps|) + bias_c``; ``ms_nc`` is the mean of ``x^2`` over ``*spatial`` of sample
    ``n`` and channel ``c``, in train and eval mode alike. No mean is subtracted, so the output may lie far from zero:
    behind it belongs :class:`ThresholdedLinearUnit`, whose threshold is learned, in the place of a ReLU.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; the output is dimensionless before ``weight`` and
    ``bias``.

    Valid for any batch size. With a single position ``x / sqrt(x^2 + eps)`` is nearly the sign of ``x`` and passes
    hardly any gradient; it is then refused unless ``learn_eps`` lets the layer soften it. Right in every derivative
    mode.

    Source: Singh and Krishnan, CVPR 2020, arXiv:1911.09737, section 3.

    Args:
        num_features: ``C``, the channels at dimension 1.
        eps: added to the mean square; None for the paper's 1e-6, or 1e-4 to start from where it is learned. With 0 a
            zero channel becomes nan.
        learn_eps: whether ``eps`` is a parameter, ``learned_eps``, one number that enters by its absolute value.
        affine: whether there are ``weight`` and ``bias``.
        device: of the parameters.
        dtype: of the parameters; statistics are taken in at least float32.

    Raises:
        ValueError: a wrong number of channels, or a single position in space while ``eps`` is fixed.
    """

    learned_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float | None = None,
        learn_eps: bool = False,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        paper = 1e-4 if learn_eps else 1e-6
        super().__init__(num_features, eps=paper if eps is None else eps, affine=affine, device=device, dtype=dtype)
        self.learn_eps = learn_eps
        start = torch.full((), self.eps, device=device, dtype=dtype)
        self.register_parameter("learned_eps", nn.Parameter(start) if learn_eps else None)

    def reset_parameters(self) -> None:
        """Set ``weight`` to one, ``bias`` to zero and ``learned_eps`` to ``eps``."""
        super().reset_parameters()
        if self.learned_eps is not None:
            nn.init.constant_(self.learned_eps, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, *spatial)``."""
        self.check_input(x)
        self._check_positions(x)
        maps = promote(x).reshape(*x.shape[:2], -1)  # a rank for "all of space", also where there is none
        eps = self.eps if self.learned_eps is None else self.learned_eps.to(maps.dtype).abs()
        scale = scale_and_shift((mean_square(maps, (2,)) + eps).rsqrt(), self.weight, None)
        return scale_and_shift(maps * scale, None, self.bias).reshape(x.shape).to(x.dtype)

    def _check_positions(self, x: Tensor) -> None:
        if self.learned_eps is None and x.shape[2:].numel() < 2:
            raise ValueError(
                f"FilterResponseNorm({self.num_features}) needs more than one position in space while eps is fixed; "
                f"got {tuple(x.shape)}, which would become its sign; use learn_eps=True, or RMSNorm for (N, C)"
            )


class ThresholdedLinearUnit(nn.Module):
    """Cut each channel off from below at a learned threshold (TLU).

    ``z = max(y, threshold_c)``, in train and eval mode alike; at 0, where it starts, it is a ReLU, and it equals
    ``relu(y - threshold_c) + threshold_c``. Where an input is cut off its gradient goes to the threshold.

    Shapes: ``(N, C, *spatial)`` to the same, any spatial rank; ``threshold`` has ``C`` values in the units of ``y``.

    Source: Singh and Krishnan, CVPR 2020, arXiv:1911.09737, section 3.

    Args:
        num_features: ``C``, the channels at dimension 1.
        device: of the parameter.
        dtype: of the parameter.

    Raises:
        ValueError: a wrong number of channels.
    """

    def __init__(
        self, num_features: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.threshold = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set ``threshold`` to zero."""
        nn.init.zeros_(self.threshold)

    def forward(self, y: Tensor) -> Tensor:
        """Cut off ``(N, C, *spatial)`` from below."""
        if y.dim() < 2 or y.shape[1] != self.num_features:
            raise ValueError(
                f"ThresholdedLinearUnit({self.num_features}) needs (N, C, *spatial) with {self.num_features} channels "
                f"at dim 1; got {tuple(y.shape)}; build it for the channels that came"
            )
        wide = promote(y)
        threshold = per_channel(self.threshold.to(wide.dtype), y)
        return (torch.relu(wide - threshold) + threshold).to(y.dtype)  # torch.maximum takes four times as long

    def extra_repr(self) -> str:
        """Show the number of channels."""
        return str(self.num_features)
