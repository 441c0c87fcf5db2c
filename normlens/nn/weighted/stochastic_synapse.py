"""Stochastic synapses: threshold units with noisy weights, which on average are weight-normalized by that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.nn.weighted.base import Weighted, check_sizes
from normlens.nn.weighted.kernels import check_kernel
from normlens.nn.weighted.noisy_threshold import Estimator, Noise, NoisyThreshold, Sample

__all__ = ["NSMConv", "NSMLinear"]


class NSMLinear(NoisyThreshold, Weighted):
    """Threshold units with noise on every synapse: a neural sampling machine, which normalizes its own weights.

    ``y_i = sign(u_i)`` with ``u_i = sum_j (xi_ij + a_i) w_ij z_j + b_i``; ``sign(0) = 1``. The synapses draw ``xi ~
    Bernoulli(p)`` (blank-out) or ``N(1, std^2)`` anew for each sample. For ``z`` of -1 and 1 and many synapses, or
    Gaussian noise, ``P(y_i = 1) = (1 + erf(phi_i)) / 2`` with ``phi_i = magnitude_i (w_i . z) / |w_i| + b_i / (c
    |w_i|)``, ``c = sqrt(2 p (1 - p))`` or ``sqrt(2) std``, ``a_i = c magnitude_i - E[xi]``.

    Noise comes from the ``generator`` of ``forward`` or of :func:`sampling`, in train and eval mode alike. Without one
    the layer returns its mean ``E[y] = erf(phi)``, exact gradient and all; means of several layers one after the other
    are not the mean of the network. With "straight_through" a sample has the derivatives of ``erf(phi)``, not its own
    (zero); with "concrete" it is the smooth ``tanh((log(P / (1 - P)) + L) / (2 temperature))``, ``L`` logistic, and
    its derivatives are exact.

    Shapes: ``(N, in_features)`` to ``(N, out_features)``; the output is dimensionless and between -1 and 1.

    Valid for inputs of -1 and 1: with 0 and 1 the variance of ``u`` is ``p (1 - p)`` times the ``w^2`` of active inputs
    only, and nothing normalizes. Blank-out of few synapses is far from Gaussian. A row of zeros gives nan. The loss
    does not depend on the common length of a row and its bias.

    Source: Detorakis, Dutta, Khanna, Jerry, Datta and Neftci, NeurIPS 2019, arXiv:1910.12316. Its published code draws
    the noise in the shape of the input, as ``sample="unit"`` does here, which correlates the units; it takes ``std``
    for a variance in drawing and for a deviation in ``a``; and it divides the bias of linear layers by the length of
    the normalized row.

    Args:
        in_features: features in.
        out_features: features out.
        generator: the source of the weights, which are ``N(0, 1 / in_features)``; not of the noise.
        has_bias: whether there is ``b``.
        p: probability of transmission of blank-out noise.
        noise: "bernoulli" or "gaussian".
        std: standard deviation of Gaussian noise.
        sample: noise of its own for each "synapse", or for each presynaptic "unit".
        estimator: "straight_through" or "concrete".
        temperature: of "concrete"; towards 0 it tends to the sign.
        approx: draw ``u`` from the normal distribution of its mean and variance, where blank-out noise takes memory of
            ``N out_features in_features``.
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32, and the noise drawn in float32.

    Raises:
        ValueError: a size below 1, a wrong number of features, or a setting outside of its range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        has_bias: bool = True,
        p: float = 0.5,
        noise: Noise = "bernoulli",
        std: float = 1.0,
        sample: Sample = "synapse",
        estimator: Estimator = "straight_through",
        temperature: float = 0.5,
        approx: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(NSMLinear, {"in_features": in_features, "out_features": out_features})
        super().__init__(
            (out_features, in_features),
            generator=generator,
            has_bias=has_bias,
            p=p,
            noise=noise,
            std=std,
            sample=sample,
            estimator=estimator,
            temperature=temperature,
            approx=approx,
            device=device,
            dtype=dtype,
        )
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``: a sample, or the mean where nothing gives noise."""
        self.check_input(x, ("N", "in_features"), dim=1, size=self.in_features)
        return self._activate(x, generator)

    def _project(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.linear(z, weight)

    def _patches(self, z: Tensor) -> Tensor:
        return z


class NSMConv(NoisyThreshold, Weighted):
    """Convolution of threshold units with noise on every synapse: :class:`NSMLinear` under each position of a kernel.

    ``y_i = sign(u_i)`` with ``u_i = sum_j (xi_ij + a_i) w_ij z_j + b_i`` over the ``in_channels`` and the kernel; each
    position of the output has synapses of its own, with noise of their own. ``magnitude`` and ``bias`` belong to output
    channels. The length of ``kernel_size`` is the spatial rank: ``(3,)``, ``(3, 3)`` or ``(3, 3, 3)``. Mean, noise,
    estimators and settings are those of :class:`NSMLinear`; with ``sample="unit"`` all that see a pixel see its noise.

    Shapes: ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')``, dimensionless and between -1 and 1.

    Valid as :class:`NSMLinear` is. Zeros that pad the border transmit no noise: units there fire with a probability
    further from one half than the formula, which takes ``|w|`` of the whole filter, says.

    Source: Detorakis et al., NeurIPS 2019, arXiv:1910.12316. Its published code has a gain for each position, ours for
    each channel.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: one entry per spatial dimension, one to three of them.
        generator: the source of the weights, which are ``N(0, 1 / fan_in)``; not of the noise.
        stride: step of the kernel in every dimension.
        padding: zeros added at both ends of every dimension.
        has_bias: whether there is ``b``.
        p: probability of transmission of blank-out noise.
        noise: "bernoulli" or "gaussian".
        std: standard deviation of Gaussian noise.
        sample: noise of its own for each "synapse", or for each presynaptic "unit".
        estimator: "straight_through" or "concrete".
        temperature: of "concrete".
        approx: draw ``u`` from the normal distribution of its mean and variance.
        device: of the parameters.
        dtype: of the parameters; everything is computed in at least float32, and the noise drawn in float32.

    Raises:
        ValueError: a size below 1, a kernel of another rank, a wrong input, or a setting outside of its range.
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
        has_bias: bool = True,
        p: float = 0.5,
        noise: Noise = "bernoulli",
        std: float = 1.0,
        sample: Sample = "synapse",
        estimator: Estimator = "straight_through",
        temperature: float = 0.5,
        approx: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(NSMConv, {"in_channels": in_channels, "out_channels": out_channels, "stride": stride})
        check_kernel(NSMConv, kernel_size)
        super().__init__(
            (out_channels, in_channels, *kernel_size),
            generator=generator,
            has_bias=has_bias,
            p=p,
            noise=noise,
            std=std,
            sample=sample,
            estimator=estimator,
            temperature=temperature,
            approx=approx,
            device=device,
            dtype=dtype,
        )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial')``: a sample, or the mean."""
        space = (f"space{i}" for i in range(len(self.kernel_size)))
        self.check_input(x, ("N", "in_channels", *space), dim=1, size=self.in_channels)
        return self._activate(x, generator)

    def _project(self, z: Tensor, weight: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        return convolve(z, weight, stride=self.stride, padding=self.padding)

    def _patches(self, z: Tensor) -> Tensor:
        rank = len(self.kernel_size)
        windows = F.pad(z, [self.padding] * (2 * rank))
        for axis, size in enumerate(self.kernel_size):
            windows = windows.unfold(2 + axis, size, self.stride)
        return windows.movedim(1, 1 + rank).flatten(1 + rank)  # (N, *spatial', in_channels * kernel)
