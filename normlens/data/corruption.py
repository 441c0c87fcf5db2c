"""Corruptions of images at five severities, on tensors: what shifts the inputs of a trained network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.data.image_operations import check_images, turn

__all__ = ["Corrupted", "blur", "brightness", "contrast", "corrupted", "gaussian_noise", "rotation"]

SEVERITIES = (1, 2, 3, 4, 5)

_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # standard deviation
_BLUR = (0.5, 0.75, 1.0, 1.5, 2.0)  # standard deviation in pixels
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # what is left of it
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # what is added
_ROTATION = (10.0, 20.0, 30.0, 45.0, 60.0)  # degrees


class Corrupted(NamedTuple):
    """Images after one corruption.

    Attributes:
        name: which.
        severity: 1 to 5.
        images: ``(N, C, H, W)``.
    """

    name: str
    severity: int
    images: Tensor


def corrupted(images: Tensor, *, generator: torch.Generator) -> Iterator[Corrupted]:
    """Yield the images under each corruption at each severity, 25 in all.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        generator: draws the noise; on the CPU.
    """
    for severity in SEVERITIES:
        noisy = gaussian_noise(images, severity, generator=generator)
        yield Corrupted("gaussian_noise", severity, noisy)
        yield Corrupted("blur", severity, blur(images, severity))
        yield Corrupted("contrast", severity, contrast(images, severity))
        yield Corrupted("brightness", severity, brightness(images, severity))
        yield Corrupted("rotation", severity, rotation(images, severity))


def gaussian_noise(images: Tensor, severity: int, *, generator: torch.Generator) -> Tensor:
    """Add independent normal numbers to every value: ``clamp(x + s n)``, ``s`` = 0.04, 0.08, 0.12, 0.18, 0.26.

    Source: after Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261; the five numbers are ours.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        severity: 1 to 5.
        generator: draws the noise; on the CPU.

    Raises:
        ValueError: no images, or no such severity.
    """
    size = _of(_NOISE, severity, images, "gaussian_noise")
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
    return (images + size * noise).clamp(0, 1)


def blur(images: Tensor, severity: int) -> Tensor:
    """Convolve with a Gaussian of standard deviation 0.5, 0.75, 1, 1.5, 2 pixels, cut off at 3 of them.

    The weights sum to one and the edge is repeated outward: a constant image and, away from the edge, the mean stay.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        severity: 1 to 5.

    Raises:
        ValueError: no images, or no such severity.
    """
    width = _of(_BLUR, severity, images, "blur")
    radius = math.ceil(3 * width)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / width).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    wide = F.pad(images, (radius,) * 4, mode="replicate")
    across = F.conv2d(wide, kernel, groups=images.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1]).clamp(0, 1)


def contrast(images: Tensor, severity: int) -> Tensor:
    """Bring each channel of each image nearer to its mean: ``m + c (x - m)``, ``c`` = 0.75, 0.5, 0.4, 0.3, 0.15.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        severity: 1 to 5.

    Raises:
        ValueError: no images, or no such severity.
    """
    left = _of(_CONTRAST, severity, images, "contrast")
    mean = images.mean((2, 3), keepdim=True)
    return (mean + left * (images - mean)).clamp(0, 1)


def brightness(images: Tensor, severity: int) -> Tensor:
    """Add a constant: ``clamp(x + b)``, ``b`` = 0.1, 0.2, 0.3, 0.4, 0.5.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        severity: 1 to 5.

    Raises:
        ValueError: no images, or no such severity.
    """
    return (images + _of(_BRIGHTNESS, severity, images, "brightness")).clamp(0, 1)


def rotation(images: Tensor, severity: int) -> Tensor:
    """Turn counterclockwise by 10, 20, 30, 45, 60 degrees, bilinearly; what comes from outside is black.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        severity: 1 to 5.

    Raises:
        ValueError: no images, or no such severity.
    """
    return turn(images, _of(_ROTATION, severity, images, "rotation")).clamp(0, 1)


def _of(levels: tuple[float, ...], severity: int, images: Tensor, what: str) -> float:
    check_images(images, what=what)
    if severity not in SEVERITIES:
        raise ValueError(f"{what} needs a severity of 1, 2, 3, 4 or 5; got {severity}; 5 is the worst")
    return levels[severity - 1]
