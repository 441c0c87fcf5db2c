"""What a model asks of the shape of its inputs, said before a layer deep inside complains."""

from __future__ import annotations

__all__ = ["check_classes", "check_image", "check_widths"]


def check_image(input_shape: tuple[int, ...], *, smallest: int = 1) -> tuple[int, int, int]:
    """Return ``input_shape`` as ``(C, H, W)``.

    Args:
        input_shape: the shape of one input.
        smallest: the least height and width that the model can halve as often as it does.

    Raises:
        ValueError: not three positive sizes, or an image that is too small.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(
            f"input_shape must be (C, H, W), the shape of one image, got {input_shape}: leave out the batch size, "
            "and use MLP for inputs that are not images."
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"images must be at least {smallest} x {smallest} pixels, got {height} x {width}: "
            "pass fewer widths or enlarge the images."
        )
    return channels, height, width


def check_widths(widths: tuple[int, ...]) -> None:
    """Check the widths of a model.

    Args:
        widths: the number of units or channels of each block or stage.

    Raises:
        ValueError: no width, or one that is not positive.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be one or more positive numbers, got {widths}: pass e.g. (16, 32, 64).")


def check_classes(classes: int) -> None:
    """Check the number of outputs.

    Args:
        classes: the number of classes.

    Raises:
        ValueError: not positive.
    """
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}: pass the number of outputs.")
