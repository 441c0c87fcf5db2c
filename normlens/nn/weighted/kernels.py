"""What convolutions with weights of their own ask of a kernel."""

from __future__ import annotations

from torch import nn

__all__ = ["check_kernel"]


def check_kernel(layer: type[nn.Module], kernel_size: tuple[int, ...]) -> None:
    """Refuse a kernel that is not one to three positive sizes.

    Args:
        layer: named in the message.
        kernel_size: one entry per spatial dimension.

    Raises:
        ValueError: it is not a tuple, of another length, or holds a size below 1.
    """
    if not isinstance(kernel_size, tuple) or not 1 <= len(kernel_size) <= 3 or min(kernel_size) < 1:
        raise ValueError(
            f"{layer.__name__} needs kernel_size as a tuple of one to three positive sizes, one per spatial dimension; "
            f"got {kernel_size!r}; write (3, 3) for images"
        )
