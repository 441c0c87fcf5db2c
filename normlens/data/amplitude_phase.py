"""Amplitude-phase recombination: the label stays with the phases of an image's spectrum, its amplitudes change."""

from __future__ import annotations

import torch
from torch import Tensor

from normlens.data.image_operations import OPERATIONS, check_images

__all__ = ["APRPair", "APRSingle", "amplitude_phase_recombination"]


def amplitude_phase_recombination(
    amplitude_from: Tensor, phase_from: Tensor, *, dim: tuple[int, ...] = (-3, -2, -1)
) -> Tensor:
    """Join the amplitudes of one real signal's spectrum and the phases of another's.

    ``x' = F^-1(|F(a)| exp(i arg F(p)))``, so that ``|F(x')| = |F(a)|``: ``sum x'^2 = sum a^2`` (Parseval), and
    ``mean(x') = +-mean(a)`` with the sign of ``mean(p)``; ``a = p`` gives ``p`` back. The result is real and leaves the
    range of its inputs: images in [0, 1] come out of [0, 1], and must be clamped. A frequency that ``p`` lacks (to
    rounding) has no phase; it gets 0.

    Apply it before the mean is subtracted: where the mean of ``p`` is negative the result's changes sign.

    Source: Chen, Peng, Ma, Li, Du and Tian, ICCV 2021, arXiv:2108.08487.

    Args:
        amplitude_from: real, of any shape.
        phase_from: real, of the same shape.
        dim: the dimensions of the Fourier transform; ``(C, H, W)`` as published, which mixes colors; ``(-2, -1)`` does
            not.

    Raises:
        ValueError: the shapes differ.
    """
    if amplitude_from.shape != phase_from.shape:
        raise ValueError(
            f"amplitude_phase_recombination needs two signals of one shape; got {tuple(amplitude_from.shape)} and "
            f"{tuple(phase_from.shape)}; crop or resize one of them"
        )
    wide = torch.promote_types(torch.promote_types(amplitude_from.dtype, phase_from.dtype), torch.float32)
    amplitude = torch.fft.rfftn(amplitude_from.to(wide), dim=dim).abs()
    spectrum = torch.fft.rfftn(phase_from.to(wide), dim=dim)
    size = spectrum.abs()
    known = size > 8 * torch.finfo(wide).eps * size.amax(dim, keepdim=True)
    direction = torch.where(known, spectrum / size.where(known, 1.0), 1.0)
    shape = [phase_from.shape[d] for d in dim]
    joined: Tensor = torch.fft.irfftn(amplitude * direction, s=shape, dim=dim)
    return joined.to(phase_from.dtype)


class APRPair:
    """Show a batch a second time, with the amplitudes of other images of the batch: APR-P.

    ``augment(x, y)`` returns ``cat[x, x'], cat[y, y]`` with probability ``p`` and ``x, y`` otherwise; ``x'_i`` has the
    phases of ``x_i`` and the amplitudes of ``x_perm(i)``. The published loss is ``CE(x) + CE(x')``: twice the mean over
    what is returned.

    Shapes: ``x (N, C, H, W)`` in [0, 1], ``y (N, ...)``.

    Source: Chen et al., ICCV 2021, arXiv:2108.08487 (p = 0.6); the clamp to [0, 1] is ours.

    Args:
        p: probability of the second showing.
        clamp: whether what leaves [0, 1] is set to its ends.
        dim: as in :func:`amplitude_phase_recombination`.
        generator: draws; on the CPU.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def __init__(
        self,
        p: float = 0.6,
        *,
        clamp: bool = True,
        dim: tuple[int, ...] = (-3, -2, -1),
        generator: torch.Generator,
    ) -> None:
        _check_probability("APRPair", p)
        self.p, self.clamp, self.dim, self.generator = p, clamp, dim, generator

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch."""
        check_images(x, what="APRPair")
        if _uniform(self.generator) >= self.p:
            return x, y
        partner = torch.randperm(len(x), generator=self.generator).to(x.device)
        mixed = amplitude_phase_recombination(x[partner], x, dim=self.dim)
        return torch.cat([x, mixed.clamp(0, 1) if self.clamp else mixed]), torch.cat([y, y])


class APRSingle:
    """Distort each image, and exchange amplitudes with a second distortion of it half of the time: APR-S.

    ``x1 = op1(x)``; with probability ``1 - p`` that is all; else ``x2 = op2(x1)`` and the image is the recombination of
    the two, either with the phases of ``x1`` or with those of ``x2``. The operations are drawn from
    :data:`~normlens.data.image_operations.OPERATIONS` at a strength uniform up to ``severity / 10``, with either sign.

    Shapes: ``x (N, C, H, W)`` in [0, 1], ``y (N, ...)``; the output has the same and stays in [0, 1].

    Source: Chen et al., ICCV 2021, arXiv:2108.08487. Their code casts the complex result to ``uint8``, which wraps what
    is below 0 or above 255 around; ours clamps, and ``wrap=True`` gives theirs.

    Args:
        p: probability of the recombination.
        severity: largest strength, of 10.
        wrap: whether to wrap around modulo 256 levels instead of clamping.
        dim: as in :func:`amplitude_phase_recombination`.
        generator: draws; on the CPU.

    Raises:
        ValueError: ``p`` is no probability, or ``severity`` is not within 0 to 10.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        severity: float = 3,
        wrap: bool = False,
        dim: tuple[int, ...] = (-3, -2, -1),
        generator: torch.Generator,
    ) -> None:
        _check_probability("APRSingle", p)
        if not 0 <= severity <= 10:
            raise ValueError(f"APRSingle needs a severity from 0 to 10; got {severity}; 3 is the published one")
        self.p, self.severity, self.wrap, self.dim, self.generator = p, severity, wrap, dim, generator

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Augment each image of a batch by draws of its own."""
        check_images(x, what="APRSingle")
        return torch.cat([self._one(image) for image in torch.split(x, 1)]), y

    def _one(self, image: Tensor) -> Tensor:
        first = self._operate(image)
        if _uniform(self.generator) >= self.p:
            return first
        second = self._operate(first)
        amplitude, phase = (first, second) if _uniform(self.generator) < 0.5 else (second, first)
        mixed = amplitude_phase_recombination(amplitude, phase, dim=self.dim)
        return wrapped(mixed) if self.wrap else mixed.clamp(0, 1)

    def _operate(self, image: Tensor) -> Tensor:
        chosen = int(torch.randint(len(OPERATIONS), (), generator=self.generator))
        strength = (2 * _uniform(self.generator) - 1) * self.severity / 10
        return OPERATIONS[chosen](image, strength).clamp(0, 1)


def wrapped(images: Tensor) -> Tensor:
    """Cast images in [0, 1] to 256 levels as C does, cut off toward zero and taken modulo 256, and back to [0, 1]."""
    return torch.remainder(torch.trunc(255 * images), 256) / 255


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{name} needs p to be a probability; got {p}; choose one from 0 to 1")
