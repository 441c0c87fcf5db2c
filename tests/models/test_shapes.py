from __future__ import annotations

import re

import pytest

from normlens.models.shapes import check_classes, check_image, check_widths


def test_an_image_that_is_large_enough_is_returned() -> None:
    assert check_image((3, 4, 5), smallest=4) == (3, 4, 5)


@pytest.mark.parametrize("shape", [(8, 8), (2, 3, 8, 8), (3, 0, 8), ()])
def test_a_shape_that_is_not_that_of_one_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"must be (C, H, W), the shape of one image, got {shape}: leave out")
    ):
        check_image(shape)


@pytest.mark.parametrize("shape", [(3, 3, 9), (3, 9, 3)])
def test_an_image_that_cannot_be_halved_often_enough_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"at least 4 x 4 pixels, got {shape[1]} x {shape[2]}: pass fewer widths"):
        check_image(shape, smallest=4)


@pytest.mark.parametrize("widths", [(), (16, 0)])
def test_widths_that_are_not_positive_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"one or more positive numbers, got {widths}: pass e.g.")):
        check_widths(widths)


def test_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="classes must be at least 1, got 0: pass"):
        check_classes(0)
