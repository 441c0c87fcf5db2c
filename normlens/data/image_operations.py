"""Operations on images as tensors: those that keep the label, by a signed strength, for augmentation and corruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from normlens.nn.functional import promote

__all__ = [
    "OPERATIONS",
    "ImageOperation",
    "autocontrast",
    "check_images",
    "equalize",
    "posterize",
    "rotate",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
    "turn",
]

ImageOperation: TypeAlias = Callable[[Tensor, float], Tensor]
"""``operation(images, strength)``: images ``(N, C, H, W)`` in [0, 1] to the same; ``strength`` in [-1, 1]."""

_LEVELS = 256
_LARGEST_TURN, _LARGEST_SHEAR, _LARGEST_SHIFT = 30.0, 0.3, 1 / 3


def check_images(images: Tensor, *, what: str) -> None:
    """Refuse what is no batch of images.

    Args:
        images: what came.
        what: who asks, named in the message.

    Raises:
        ValueError: it is not floating-point of shape ``(N, C, H, W)``.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"{what} needs floating-point images (N, C, H, W) in [0, 1]; got {images.dtype} of shape "
            f"{tuple(images.shape)}; add the missing dimensions, or divide integers by 255"
        )


def turn(images: Tensor, degrees: float) -> Tensor:
    """Turn images counterclockwise about their center, bilinearly; what comes from outside is black.

    A multiple of 90 degrees of square images is ``torch.rot90`` to rounding.

    Args:
        images: ``(N, C, H, W)``.
        degrees: the angle.
    """
    cosine, sine = (round(f(math.radians(degrees)), 15) for f in (math.cos, math.sin))  # cos 90 degrees is 0
    return _warp(images, ((cosine, -sine, 0.0), (sine, cosine, 0.0)))


def rotate(images: Tensor, strength: float) -> Tensor:
    """Turn images counterclockwise by up to 30 degrees.

    Args:
        images: ``(N, C, H, W)``.
        strength: of 30 degrees, with its sign.
    """
    return turn(images, _LARGEST_TURN * strength)


def shear_x(images: Tensor, strength: float) -> Tensor:
    """Move each row sideways in proportion to its height above the center, by up to 0.3 of it.

    Args:
        images: ``(N, C, H, W)``.
        strength: of 0.3, with its sign.
    """
    return _warp(images, ((1.0, _LARGEST_SHEAR * strength, 0.0), (0.0, 1.0, 0.0)))


def shear_y(images: Tensor, strength: float) -> Tensor:
    """Move each column up or down in proportion to its distance from the center, by up to 0.3 of it.

    Args:
        images: ``(N, C, H, W)``.
        strength: of 0.3, with its sign.
    """
    return _warp(images, ((1.0, 0.0, 0.0), (_LARGEST_SHEAR * strength, 1.0, 0.0)))


def translate_x(images: Tensor, strength: float) -> Tensor:
    """Move images to the left by up to a third of their width; what comes from outside is black.

    Args:
        images: ``(N, C, H, W)``.
        strength: of a third, with its sign.
    """
    return _warp(images, ((1.0, 0.0, _LARGEST_SHIFT * strength * images.shape[3]), (0.0, 1.0, 0.0)))


def translate_y(images: Tensor, strength: float) -> Tensor:
    """Move images up by up to a third of their height; what comes from outside is black.

    Args:
        images: ``(N, C, H, W)``.
        strength: of a third, with its sign.
    """
    return _warp(images, ((1.0, 0.0, 0.0), (0.0, 1.0, _LARGEST_SHIFT * strength * images.shape[2])))


def autocontrast(images: Tensor, strength: float = 1.0) -> Tensor:
    """Stretch each channel of each image to [0, 1]: ``(x - min) / (max - min)``; a constant one stays as it is.

    Args:
        images: ``(N, C, H, W)``.
        strength: has no influence.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).where(high > low, 1.0), images)


def equalize(images: Tensor, strength: float = 1.0) -> Tensor:
    """Give each channel of each image the even histogram: ``(cdf(x) - cdf(min)) / (1 - cdf(min))`` at 256 levels.

    A constant channel stays as it is.

    Args:
        images: ``(N, C, H, W)``.
        strength: has no influence.
    """
    level = (images.clamp(0, 1) * (_LEVELS - 1)).round().long().flatten(2)
    counts = torch.zeros(*level.shape[:2], _LEVELS, device=images.device, dtype=torch.float64)
    counts.scatter_add_(2, level, torch.ones_like(level, dtype=counts.dtype))
    cumulated = counts.cumsum(2)
    pixels = level.shape[2]
    least = cumulated.gather(2, level.amin(2, keepdim=True))
    even = (cumulated.gather(2, level) - least) / (pixels - least).clamp(min=1.0)
    return torch.where(least < pixels, even, images.flatten(2)).view_as(images).to(images.dtype)


def posterize(images: Tensor, strength: float) -> Tensor:
    """Keep the highest of 8 bits of each pixel, 4 of them at full strength and all 8 at 0.

    Args:
        images: ``(N, C, H, W)``.
        strength: of 4 bits to drop, rounded to whole ones; its sign has no influence.
    """
    width = 2.0 ** round(4 * abs(strength))
    return torch.floor((images * (_LEVELS - 1)).round() / width) * width / (_LEVELS - 1)


def solarize(images: Tensor, strength: float) -> Tensor:
    """Invert the pixels at or above a threshold: ``1 - x`` where ``x >= 1 - |strength|``.

    Args:
        images: ``(N, C, H, W)``.
        strength: 0 inverts white alone, 1 everything; its sign has no influence.
    """
    return torch.where(images >= 1 - abs(strength), 1 - images, images)


OPERATIONS: tuple[ImageOperation, ...] = (
    autocontrast, equalize, posterize, rotate, solarize, shear_x, shear_y, translate_x, translate_y,
)  # fmt: skip
"""The nine that amplitude-phase recombination draws from; their largest strengths are ours, near AugMix's."""


def _warp(images: Tensor, rows: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Tensor:
    """Read each output pixel from ``rows @ (x, y, 1)``, in pixels from the center of the image, y downward."""
    height, width = images.shape[2:]
    (xx, xy, x0), (yx, yy, y0) = rows
    matrix = ((xx, xy * height / width, 2 * x0 / width), (yx * width / height, yy, 2 * y0 / height))
    wide = promote(images)
    theta = torch.tensor(matrix, dtype=wide.dtype, device=wide.device).expand(len(wide), 2, 3)
    grid = F.affine_grid(theta, list(wide.shape), align_corners=False)
    return F.grid_sample(wide, grid, align_corners=False).to(images.dtype)
