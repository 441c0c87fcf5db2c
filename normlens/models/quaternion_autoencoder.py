"""A convolutional auto-encoder of quaternions, QCAE, and its twin of real numbers, CAE.

Neither classifies, so the file has no model's name: ``normlens run --model`` does not list it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normlens.nn.weighted.quaternion import QuaternionConv, QuaternionConvTranspose

__all__ = ["QCAE", "CAE", "as_quaternions", "chroma"]  # noqa: RUF022 - the first name is the thing itself

WIDTHS = (32, 40, 32)


class _AutoEncoder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Apply the children in their order."""
        for step in self.children():
            x = step(x)
        return x


class QCAE(_AutoEncoder):
    """Two quaternion convolutions that halve the image and two transposed ones that bring it back; 6444 parameters.

    ``conv1, act1, conv2, act2, deconv1, act3, deconv2, act4`` of 4, 32, 40, 32 and 4 real channels, kernels of 3 x 3,
    stride 2; the activation is hardtanh everywhere, the output included.

    Shapes: ``(N, 4, H, W)``, see :func:`as_quaternions`, to the same where four divides ``H`` and ``W``; in [-1, 1].

    Valid as an experiment on what quaternions share: a linear map by quaternions that reproduces every gray pixel
    ``g (i + j + k)``, the zero real part included, is the identity, for ``q u = u`` leaves ``q = 1`` alone; a real one
    that does may map any color to gray. Of the real part left out of the loss this is no longer true.

    Source: Parcollet, Morchid and Linarès, ICASSP 2019, arXiv:1811.02656, and their published code for the sizes.

    Args:
        seed: decides all weights.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        first, code, last = WIDTHS
        kernel = (3, 3)
        self.conv1 = QuaternionConv(4, first, kernel, generator=generator, stride=2, padding=1)
        self.act1 = nn.Hardtanh()
        self.conv2 = QuaternionConv(first, code, kernel, generator=generator, stride=2, padding=1)
        self.act2 = nn.Hardtanh()
        self.deconv1 = QuaternionConvTranspose(
            code, last, kernel, generator=generator, stride=2, padding=1, output_padding=1
        )
        self.act3 = nn.Hardtanh()
        self.deconv2 = QuaternionConvTranspose(
            last, 4, kernel, generator=generator, stride=2, padding=1, output_padding=1
        )
        self.act4 = nn.Hardtanh()


class CAE(_AutoEncoder):
    """The same of real numbers: 3, 32, 40, 32 and 3 channels, 24 875 parameters.

    The names of the children and the activations are :class:`QCAE`'s. Weights are drawn by Glorot's rule, ``N(0, 2 /
    (fan_in + fan_out))``, biases are 0.

    Shapes: ``(N, 3, H, W)`` to the same where four divides ``H`` and ``W``; values in [-1, 1].

    Valid as the comparison to :class:`QCAE`.

    Source: Parcollet, Morchid and Linarès, ICASSP 2019, arXiv:1811.02656.

    Args:
        seed: decides all weights.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        first, code, last = WIDTHS
        # made on "meta", where nothing is drawn: on "cpu" the constructor draws from the global random state
        self.conv1 = _drawn(nn.Conv2d(3, first, 3, stride=2, padding=1, device="meta"), generator)
        self.act1 = nn.Hardtanh()
        self.conv2 = _drawn(nn.Conv2d(first, code, 3, stride=2, padding=1, device="meta"), generator)
        self.act2 = nn.Hardtanh()
        self.deconv1 = _drawn(
            nn.ConvTranspose2d(code, last, 3, stride=2, padding=1, output_padding=1, device="meta"), generator
        )
        self.act3 = nn.Hardtanh()
        self.deconv2 = _drawn(
            nn.ConvTranspose2d(last, 3, 3, stride=2, padding=1, output_padding=1, device="meta"), generator
        )
        self.act4 = nn.Hardtanh()


def as_quaternions(images: Tensor) -> Tensor:
    """Write colors as quaternions without a real part: ``(N, 3, H, W)`` to ``(N, 4, H, W)``, ``(0, R, G, B)``.

    Args:
        images: red, green and blue at dimension 1.

    Raises:
        ValueError: no three channels at dimension 1.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(
            f"as_quaternions needs images (N, 3, H, W); got {tuple(images.shape)}; repeat a gray channel three times"
        )
    return torch.cat([torch.zeros_like(images[:, :1]), images], 1)


def chroma(images: Tensor) -> Tensor:
    """What is colored in an image: ``(N, 3, H, W)`` less the mean of the three channels; 0 for gray.

    Args:
        images: red, green and blue at dimension 1.
    """
    return images - images.mean(1, keepdim=True)


def _drawn(layer: nn.Conv2d | nn.ConvTranspose2d, generator: torch.Generator) -> nn.Module:
    layer = layer.to_empty(device="cpu")
    fans = (layer.weight.shape[0] + layer.weight.shape[1]) * math.prod(layer.weight.shape[2:])
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2 / fans), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
