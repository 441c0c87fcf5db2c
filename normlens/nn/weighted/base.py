"""What the layers with weights share: drawing them, the checks of their sizes and input, and their repr."""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Weighted", "check_sizes", "draw_normal_"]


class Weighted(nn.Module):
    """A layer with weights of its own, drawn from a generator passed in and never from the global random state.

    A subclass names every setting in its constructor and keeps it as an attribute of the same name: ``repr`` shows just
    these. Its sizes come first; the ``generator`` is a keyword and is not kept.

    Attributes:
        sensitivity: how many times more than a plain linear map it magnifies the rounding of its input.
    """

    sensitivity: ClassVar[float] = 1.0

    def check_input(self, x: Tensor, axes: tuple[str, ...], *, dim: int, size: int) -> None:
        """Refuse what this layer cannot mean.

        Args:
            x: the input of ``forward``.
            axes: its dimensions in words, e.g. ``("N", "in_features")``.
            dim: the one whose size is fixed.
            size: that size.

        Raises:
            ValueError: ``x`` is not floating point, has another number of dimensions, or another size at ``dim``.
        """
        name = type(self).__name__
        if not x.is_floating_point():
            raise ValueError(f"{name} needs a floating-point input; got {x.dtype}; convert it with .float()")
        if x.dim() != len(axes) or x.shape[dim] != size:
            raise ValueError(
                f"{name} needs ({', '.join(axes)}) with {axes[dim]}={size} at dim {dim}; got {tuple(x.shape)}; "
                "reshape the input, or build the layer for the size that came"
            )

    def extra_repr(self) -> str:
        """List the settings by the names the constructor takes; a function is shown by its name."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in _NOT_KEPT]
        values = [getattr(self, name) for name in names]
        shown = (getattr(value, "__name__", value) for value in values)
        return ", ".join(f"{name}={value}" for name, value in zip(names, shown, strict=True))


_NOT_KEPT = {"generator", "device", "dtype"}


def check_sizes(layer: type[Weighted], sizes: dict[str, int]) -> None:
    """Refuse sizes below 1.

    Args:
        layer: named in the message.
        sizes: each by the name that the constructor gives it.

    Raises:
        ValueError: one of them is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{layer.__name__} needs {name} of at least 1; got {size}; give a positive size")


def draw_normal_(parameter: Tensor, *, std: float, generator: torch.Generator) -> None:
    """Fill ``parameter`` with ``N(0, std^2)``: float64 numbers, rounded, so that every dtype and device gets the same.

    Args:
        parameter: what is filled in place.
        std: the standard deviation.
        generator: the source of the numbers.
    """
    drawn = torch.randn(parameter.shape, generator=generator, device=generator.device, dtype=torch.float64)
    with torch.no_grad():
        parameter.copy_(std * drawn)
