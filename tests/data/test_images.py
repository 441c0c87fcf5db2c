from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from normlens.data.batching import epoch_order
from normlens.data.images import ImageData

IMAGES = torch.linspace(0, 1, 5 * 3 * 2 * 4).reshape(5, 3, 2, 4)
LABELS = torch.tensor([0, 1, 1, 0, 1])


def data(images: Tensor = IMAGES, labels: Tensor = LABELS) -> ImageData:
    return ImageData(name="toy", train=(images, labels), test=(IMAGES[:2], LABELS[:2]), classes=("cat", "dog"))


def test_the_shape_is_that_of_one_image() -> None:
    assert data().shape == (3, 2, 4)


def test_the_loader_walks_the_train_part_in_the_order_of_its_seed() -> None:
    [(images, labels)] = data().loader(5, seed=4)
    order = epoch_order(5, seed=4, epoch=0)
    assert torch.equal(images, IMAGES[order])
    assert torch.equal(labels, LABELS[order])


def test_the_attributes_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        data().name = "other"  # type: ignore[misc]


def test_the_representation_holds_no_pixels() -> None:
    assert repr(data()) == "ImageData(name='toy', classes=('cat', 'dog'))"


@pytest.mark.parametrize(
    ("images", "came"),
    [
        (IMAGES.double(), "torch.float64 of shape"),
        (IMAGES[0], r"shape \(3, 2, 4\)"),
        (IMAGES[:0], r"shape \(0, 3, 2, 4\)"),
    ],
)
def test_images_that_are_not_float32_in_four_dimensions_are_refused(images: Tensor, came: str) -> None:
    with pytest.raises(ValueError, match=rf"toy, train: images must be float32 .* got .*{came}.*: reshape or convert"):
        data(images=images)


@pytest.mark.parametrize(
    ("images", "came"),
    [(IMAGES * 255, r"\[0.0, 255.0\]"), (IMAGES - 0.5, r"\[-0.5, 0.5\]"), (IMAGES * torch.nan, r"\[nan, nan\]")],
)
def test_images_outside_of_the_unit_interval_are_refused(images: Tensor, came: str) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {came}: divide"):
        data(images=images)


@pytest.mark.parametrize(
    ("labels", "came"), [(LABELS[:4], r"shape \(4,\)"), (LABELS.int(), "int32"), (LABELS[:, None], r"shape \(5, 1\)")]
)
def test_labels_that_are_not_one_integer_for_each_image_are_refused(labels: Tensor, came: str) -> None:
    with pytest.raises(ValueError, match=rf"int64 of shape \(5,\), .* got .*{came}.*: convert or match"):
        data(labels=labels)


@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_without_a_class_are_refused(shift: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in 0, \.\.\., 1, got {shift}, \.\.\., {1 + shift}: name every"):
        data(labels=LABELS + shift)


def test_the_test_part_is_checked_too() -> None:
    with pytest.raises(ValueError, match="toy, test: images must lie"):
        ImageData(name="toy", train=(IMAGES, LABELS), test=(IMAGES + 1, LABELS), classes=("cat", "dog"))


def test_train_and_test_images_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2, 4\) and \(3, 2, 3\): resize or crop"):
        ImageData(name="toy", train=(IMAGES, LABELS), test=(IMAGES[..., :3], LABELS), classes=("cat", "dog"))
