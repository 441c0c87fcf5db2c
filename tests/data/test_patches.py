from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from normlens.data.patches import patches

HEIGHT, WIDTH = 427, 640
AREA = HEIGHT * WIDTH


@pytest.fixture
def pixel_numbers(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The number of every pixel in the train and the test patches, from photographs whose colors are these numbers."""
    numbers = np.arange(2 * AREA).reshape(2, HEIGHT, WIDTH)
    colors = np.stack([numbers >> 16, (numbers >> 8) & 255, numbers & 255], axis=-1).astype(np.uint8)
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=list(colors)))
    data = patches()
    place = torch.tensor([1 << 16, 1 << 8, 1])[:, None, None]
    train, test = (((images * 255).round().long() * place).sum(1) for images, _ in (data.train, data.test))
    return train, test


def test_no_pixel_is_in_the_train_and_in_the_test_part(pixel_numbers: tuple[Tensor, Tensor]) -> None:
    train, test = (set(part.flatten().tolist()) for part in pixel_numbers)
    assert train
    assert test
    assert not train & test


def test_every_patch_is_a_window_of_the_photograph_that_its_label_names(pixel_numbers: tuple[Tensor, Tensor]) -> None:
    offsets = torch.arange(32)[:, None] * WIDTH + torch.arange(32)
    for part, (_, labels) in zip(pixel_numbers, (patches().train, patches().test), strict=True):
        corners = part[:, 0, 0]
        assert torch.equal(part, corners[:, None, None] + offsets)
        assert torch.equal(corners // AREA, labels)
        assert int((corners % WIDTH).max()) <= WIDTH - 32  # a window does not wrap around the right edge


def test_no_patch_comes_twice_and_both_photographs_give_the_same_number(pixel_numbers: tuple[Tensor, Tensor]) -> None:
    for part, windows in zip(pixel_numbers, (2 * 25 * 15, 25 * 7), strict=True):
        corners = part[:, 0, 0]
        assert len(set(corners.tolist())) == len(corners) == 2 * windows
        assert int((corners < AREA).sum()) == windows


def test_the_pixels_are_those_of_the_photographs_divided_by_255() -> None:
    china, flower = load_sample_images().images
    images, labels = patches().train
    for label, photograph in enumerate((china, flower)):
        corner = images[labels == label][0].permute(1, 2, 0)
        np.testing.assert_array_equal(corner.numpy(), photograph[:32, :32].astype(np.float32) / 255)


def test_the_classes_are_the_names_of_the_photographs() -> None:
    names = [name.rpartition("/")[2].removesuffix(".jpg") for name in load_sample_images().filenames]
    assert list(patches().classes) == names
