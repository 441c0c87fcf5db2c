"""Quaternion layers: linear maps and convolutions whose weights are quaternions, a quarter of the real parameters."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.nn.functional import promote
from normlens.nn.init import quaternion_
from normlens.nn.weighted.base import Weighted, check_sizes
from normlens.nn.weighted.hamilton import hamilton_matrix
from normlens.nn.weighted.kernels import check_kernel

__all__ = ["QuaternionConv", "QuaternionConvTranspose", "QuaternionInit", "QuaternionLinear"]

QuaternionInit = Literal["glorot", "he"]


class _Quaternion(Weighted):
    """A weight ``(4, first / 4, second / 4, *kernel)`` with the components r, i, j, k in front, and a real bias."""

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        inputs: int,
        outputs: int,
        generator: torch.Generator,
        has_bias: bool,
        init: QuaternionInit,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if inputs % 4 or outputs % 4:
            raise ValueError(
                f"{name} needs sizes that four divides, the blocks r, i, j, k; got {inputs} in and {outputs} out; "
                "count all four components, and add a block of zeros where there are three"
            )
        if init not in get_args(QuaternionInit):
            raise ValueError(f"{name} needs init to be 'glorot' or 'he'; got {init!r}; choose one of the two")
        self.has_bias, self.init = has_bias, init
        blocks = (4, shape[0] // 4, shape[1] // 4, *shape[2:])
        self.weight = nn.Parameter(torch.empty(blocks, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(self.weight.new_zeros(outputs)) if has_bias else None)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights anew; the bias becomes 0."""
        quaternion_(self._outputs_first(), generator=generator, rule=self.init)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def real_weight(self) -> Tensor:
        """The weight of the real layer that does the same: :func:`hamilton_matrix` of ``weight``."""
        return hamilton_matrix(self.weight)

    def _outputs_first(self) -> Tensor:
        """The weight, or a view of it, as ``(4, out / 4, in / 4, *kernel)``, from which fans are read."""
        return self.weight

    def _real(self, wide: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.real_weight().to(wide.dtype), None if self.bias is None else self.bias.to(wide.dtype)


class QuaternionLinear(_Quaternion):
    """Multiply quaternion features by quaternion weights from the left and add them up.

    ``y = H(W) x + b`` with ``(W x)_o = sum_i W_oi x_i``, each a Hamilton product: ``H(W)`` is the real matrix of
    :func:`~normlens.nn.weighted.hamilton.hamilton_matrix`. Features are laid out in four blocks, first all real parts,
    then all i, all j, all k. Train and eval mode are alike, and so are batches of one.

    Shapes: ``(N, in_features)`` to ``(N, out_features)``, counted in real numbers and multiples of 4; ``weight`` is
    ``(4, out_features / 4, in_features / 4)``, a quarter of the real layer's, ``bias`` is real, ``(out_features,)``.

    Valid for any input; the map commutes with the multiplication of all features by one quaternion from the right.

    Source: Parcollet, Morchid and Linarès, ICASSP 2019, arXiv:1811.02656; the draw of the weights is their published
    code's: modulus ``s chi_4``, ``s = 1 / sqrt(2 (fan_in + fan_out))`` or ``1 / sqrt(2 fan_in)``, fans counted in
    quaternions, angle uniform in (-pi, pi), axis a normalized draw from the cube (not uniform on the sphere).

    Args:
        in_features: features in.
        out_features: features out.
        generator: the source of the weights.
        has_bias: whether there is ``b``.
        init: "glorot" or "he", by which the modulus is drawn.
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1 or not divided by four, another ``init``, or a wrong number of features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        has_bias: bool = True,
        init: QuaternionInit = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(QuaternionLinear, {"in_features": in_features, "out_features": out_features})
        super().__init__(
            (out_features, in_features),
            inputs=in_features,
            outputs=out_features,
            generator=generator,
            has_bias=has_bias,
            init=init,
            device=device,
            dtype=dtype,
        )
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        self.check_input(x, ("N", "in_features"), dim=1, size=self.in_features)
        wide = promote(x)
        return F.linear(wide, *self._real(wide)).to(x.dtype)


class QuaternionConv(_Quaternion):
    """Convolution of quaternion channels with quaternion filters, multiplied from the left.

    ``y = H(W) * x + b``: the real convolution whose filters are ``H(W)`` at each place of the kernel. Channels are laid
    out in four blocks r, i, j, k. The length of ``kernel_size`` is the spatial rank. Weights are drawn as
    :class:`QuaternionLinear`'s, with fans times the size of the kernel. Train and eval mode are alike.

    Shapes: ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')``, channels counted in real numbers and
    multiples of 4; ``weight`` is ``(4, out_channels / 4, in_channels / 4, *kernel_size)``.

    Valid for any input; no groups of channels.

    Source: Parcollet, Morchid and Linarès, ICASSP 2019, arXiv:1811.02656.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: one entry per spatial dimension, one to three of them.
        generator: the source of the weights.
        stride: step of the kernel in every dimension.
        padding: zeros added at both ends of every dimension.
        dilation: distance of the kernel's entries in every dimension.
        has_bias: whether there is ``b``.
        init: "glorot" or "he".
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1 or not divided by four, a kernel of another rank, another ``init``, or a wrong input.
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
        has_bias: bool = True,
        init: QuaternionInit = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "stride": stride, "dilation": dilation}
        check_sizes(QuaternionConv, sizes)
        check_kernel(QuaternionConv, kernel_size)
        super().__init__(
            (out_channels, in_channels, *kernel_size),
            inputs=in_channels,
            outputs=out_channels,
            generator=generator,
            has_bias=has_bias,
            init=init,
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
        y = convolve(wide, *self._real(wide), stride=self.stride, padding=self.padding, dilation=self.dilation)
        return y.to(x.dtype)


class QuaternionConvTranspose(_Quaternion):
    """The adjoint of a quaternion convolution: it multiplies by the conjugate weights from the left.

    ``y = A^T x + b`` with ``A`` the :class:`QuaternionConv` from ``out_channels`` to ``in_channels`` of the same
    ``weight``, so ``<A x, y> = <x, A^T y>``; at one pixel ``y = conj(W) x``, not ``W x``. Weights are drawn as
    :class:`QuaternionLinear`'s, with fans times the size of the kernel. Train and eval mode are alike.

    Shapes: ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')`` with ``spatial' = (spatial - 1) stride -
    2 padding + dilation (kernel - 1) + output_padding + 1``; channels are counted in real numbers and multiples of 4,
    ``weight`` is ``(4, in_channels / 4, out_channels / 4, *kernel_size)``.

    Valid for any input; no groups of channels.

    Source: Parcollet, Morchid and Linarès, ICASSP 2019, arXiv:1811.02656, and the published code, which hands the
    same real filters to the transposed convolution.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: one entry per spatial dimension, one to three of them.
        generator: the source of the weights.
        stride: step of the kernel in every dimension of the output.
        padding: zeros that the adjoint convolution adds at both ends.
        output_padding: pixels at the far end that the adjoint convolution's stride leaves out.
        dilation: distance of the kernel's entries in every dimension.
        has_bias: whether there is ``b``.
        init: "glorot" or "he".
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32.

    Raises:
        ValueError: a size below 1 or not divided by four, a kernel of another rank, another ``init``, or a wrong input.
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
        output_padding: int = 0,
        dilation: int = 1,
        has_bias: bool = True,
        init: QuaternionInit = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "stride": stride, "dilation": dilation}
        check_sizes(QuaternionConvTranspose, sizes)
        check_kernel(QuaternionConvTranspose, kernel_size)
        super().__init__(
            (in_channels, out_channels, *kernel_size),
            inputs=in_channels,
            outputs=out_channels,
            generator=generator,
            has_bias=has_bias,
            init=init,
            device=device,
            dtype=dtype,
        )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.output_padding = output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')``."""
        rank = len(self.kernel_size)
        self.check_input(x, ("N", "in_channels", *(f"space{i}" for i in range(rank))), dim=1, size=self.in_channels)
        wide = promote(x)
        spread = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        y = spread(
            wide,
            *self._real(wide),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
        )
        return y.to(x.dtype)

    def _outputs_first(self) -> Tensor:
        return self.weight.transpose(1, 2)
