"""Normalization propagation: linear maps whose activations have mean 0 and variance 1 by the theory of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.functional import affine as scale_and_shift
from normlens.nn.functional import promote
from normlens.nn.weighted.activation_constants import ActivationConstants
from normlens.nn.weighted.base import Weighted, check_sizes, draw_normal_

__all__ = ["NormPropConv", "NormPropLinear", "coherence", "unit_rows"]


def unit_rows(weight: Tensor) -> Tensor:
    """Scale each row ``weight[i]``, a filter with all it holds, to length one; a row of zeros becomes nan."""
    lengths = weight.flatten(1).square().sum(1).sqrt()
    return weight / lengths.reshape(-1, *(1,) * (weight.dim() - 1))


def coherence(weight: Tensor) -> Tensor:
    """Take the largest ``|cos|`` between two rows, ``mu = max_{i != j} |w_i . w_j| / (|w_i| |w_j|)``; 0 for one row.

    It bounds what normalization propagation neglects: for ``z = W x`` with ``E[x] = 0`` and ``Cov(x) = sigma^2 I``,
    ``|Cov(z) - diag Cov(z)|_F <= sigma^2 mu sqrt(sum_{i != j} |w_i|^2 |w_j|^2)``.

    Source: Arpit et al., ICML 2016, arXiv:1603.01431, its canonical error bound.

    Args:
        weight: one filter per entry of the first dimension.
    """
    rows = unit_rows(promote(weight)).flatten(1)
    return (rows @ rows.T).fill_diagonal_(0).abs().max()


class _NormProp(Weighted):
    """Weights of which the direction counts, a gain and a bias, and an activation with its constants."""

    gain: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator,
        affine: bool,
        activation: Callable[[Tensor], Tensor],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.affine, self.activation = affine, activation
        self.constants = ActivationConstants.of(activation)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        one = torch.ones(shape[0], device=device, dtype=dtype)
        self.register_parameter("gain", nn.Parameter(one) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros_like(one)) if affine else None)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights anew and set ``gain`` and ``bias`` to where they start."""
        draw_normal_(self.weight, std=1 / math.sqrt(self.weight[0].numel()), generator=generator)
        if self.gain is not None and self.bias is not None:
            nn.init.constant_(self.gain, self.constants.std / self.constants.slope)
            nn.init.zeros_(self.bias)

    def _activate(self, projected: Tensor) -> Tensor:
        u = scale_and_shift(promote(projected), self.gain, self.bias)
        return (self.activation(u) - self.constants.mean) / self.constants.std


class NormPropLinear(_NormProp):
    """Linear map with rows of length one, then an activation brought back to mean 0 and variance 1 by its constants.

    ``y = (f(u) - mean) / std`` with ``u_i = gain_i (w_i . x) / |w_i| + bias_i``; ``mean`` and ``std`` are those of
    ``f(Z)``, ``Z ~ N(0, 1)``: for ReLU ``sqrt(1 / 2 pi) = 0.3989`` and ``sqrt((1 - 1 / pi) / 2) = 0.5838``. No
    statistics of data: train and eval mode are alike, and so are batches of one.

    The ``gain`` starts at ``std / sqrt(E[f'(Z)^2])``, for ReLU ``1 / 1.21 = 0.8256``, where the Jacobian of orthogonal
    rows has singular values of 1 in the root mean square.

    Shapes: ``(N, in_features)`` to ``(N, out_features)``; the output is dimensionless.

    Valid for inputs of mean 0 and covariance 1 (standardize the features of the training set once) and filters of small
    :func:`coherence`. Mean 0 and variance 1 are exact at ``gain`` 1 and ``bias`` 0 alone, hence not where it starts.
    The loss does not depend on the length of a row: its gradient is orthogonal to the row, and at
    every stationary point the row is a null direction of the Hessian. A row of zeros gives nan. A sum with a shortcut
    has variance 2: divide it by ``sqrt(2)``.

    Source: Arpit, Zhou, Kota and Govindaraju, ICML 2016, arXiv:1603.01431.

    Args:
        in_features: features in.
        out_features: features out.
        generator: the source of the weights, which are ``N(0, 1 / in_features)``; only their direction matters.
        affine: whether ``gain`` and ``bias`` are learned; without them they are 1 and 0.
        activation: elementwise, without parameters; see :class:`ActivationConstants`.
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1, a wrong number of features, or an activation without constants.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        affine: bool = True,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(NormPropLinear, {"in_features": in_features, "out_features": out_features})
        super().__init__(
            (out_features, in_features),
            generator=generator,
            affine=affine,
            activation=activation,
            device=device,
            dtype=dtype,
        )
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        self.check_input(x, ("N", "in_features"), dim=1, size=self.in_features)
        wide = promote(x)
        return self._activate(F.linear(wide, unit_rows(self.weight.to(wide.dtype)))).to(x.dtype)


class NormPropConv(_NormProp):
    """Convolution with filters of length one, then an activation brought back to mean 0 and variance 1.

    ``y = (f(u) - mean) / std`` with ``u_i = gain_i (w_i * x) / |w_i| + bias_i``; ``|w_i|`` is taken over all
    ``in_channels`` and the whole kernel, the rest is :class:`NormPropLinear`'s. The length of ``kernel_size`` is the
    spatial rank: ``(3,)``, ``(3, 3)`` or ``(3, 3, 3)``. Train and eval mode are alike, and so are batches of one.

    Shapes: ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')``; the output is dimensionless.

    Valid as :class:`NormPropLinear` is, where the pixels under a kernel are uncorrelated. Zero padding lowers the
    variance at the border, average pooling afterwards lowers it everywhere, and max pooling shifts the mean.

    Source: Arpit, Zhou, Kota and Govindaraju, ICML 2016, arXiv:1603.01431.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: one entry per spatial dimension, one to three of them.
        generator: the source of the weights, which are ``N(0, 1 / fan_in)``; only their direction matters.
        stride: step of the kernel in every dimension.
        padding: zeros added at both ends of every dimension.
        dilation: distance of the kernel's entries in every dimension.
        affine: whether ``gain`` and ``bias`` are learned; without them they are 1 and 0.
        activation: elementwise, without parameters; see :class:`ActivationConstants`.
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1, a kernel of another rank, a wrong input, or an activation without constants.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        generator: torch.Generator,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        affine: bool = True,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(
            NormPropConv,
            {"in_channels": in_channels, "out_channels": out_channels, "stride": stride, "dilation": dilation},
        )
        super().__init__(
            (out_channels, in_channels, *_checked(kernel_size)),
            generator=generator,
            affine=affine,
            activation=activation,
            device=device,
            dtype=dtype,
        )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')``."""
        rank = len(self.kernel_size)
        self.check_input(x, ("N", "in_channels", *(f"space{i}" for i in range(rank))), dim=1, size=self.in_channels)
        wide = promote(x)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        filters = unit_rows(self.weight.to(wide.dtype))
        u = convolve(wide, filters, stride=self.stride, padding=self.padding, dilation=self.dilation)
        return self._activate(u).to(x.dtype)


def _checked(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(kernel_size, tuple) or not 1 <= len(kernel_size) <= 3 or min(kernel_size) < 1:
        raise ValueError(
            f"NormPropConv needs kernel_size as a tuple of one to three positive sizes, one per spatial dimension; "
            f"got {kernel_size!r}; write (3, 3) for images"
        )
    return kernel_size
