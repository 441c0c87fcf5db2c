from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from normlens.data.errors import DataError
from normlens.data.mnist import mnist

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (7, 28, 28), np.uint8), "t10k": RNG.integers(0, 256, (3, 28, 28), np.uint8)}
LABELS = {"train": np.array([0, 9, 3, 3, 1, 2, 8], np.uint8), "t10k": np.array([5, 0, 7], np.uint8)}


def write(path: Path, values: NDArray[np.uint8]) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "t10k"):
        write(tmp_path / f"{part}-images-idx3-ubyte", IMAGES[part])
        write(tmp_path / f"{part}-labels-idx1-ubyte", LABELS[part])
    return tmp_path


def test_pixels_are_bytes_divided_by_255_and_labels_stay_in_place(folder: Path) -> None:
    data = mnist(folder)
    for (images, labels), part in ((data.train, "train"), (data.test, "t10k")):
        np.testing.assert_array_equal(images.numpy(), (IMAGES[part] / 255)[:, None].astype(np.float32))
        np.testing.assert_array_equal(labels.numpy(), LABELS[part])
    assert data.shape == (1, 28, 28)
    assert data.classes == tuple("0123456789")


@pytest.mark.parametrize("spelling", ["{}-{}", "{}.{}", "{}-{}.gz", "{}.{}.gz"])
def test_every_published_spelling_is_found_in_a_folder_given_as_text(tmp_path: Path, spelling: str) -> None:
    for part in ("train", "t10k"):
        write(tmp_path / spelling.format(f"{part}-images", "idx3-ubyte"), IMAGES[part])
        write(tmp_path / spelling.format(f"{part}-labels", "idx1-ubyte"), LABELS[part])
    np.testing.assert_array_equal(mnist(str(tmp_path)).train[1].numpy(), LABELS["train"])


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named_with_its_spellings_and_where_to_get_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} must be .*{name}\.gz.*no such file; fetch .* from yann\.lecun\.com"):
        mnist(folder)


@pytest.mark.parametrize("count", [6, 8])
def test_another_number_of_labels_than_images_is_refused(folder: Path, count: int) -> None:
    write(folder / "train-labels-idx1-ubyte", np.ones(count, np.uint8))
    with pytest.raises(DataError, match=rf"train-labels-idx1-ubyte must be 7 labels .* it holds {count} .*; fetch"):
        mnist(folder)


def test_a_label_above_nine_is_refused(folder: Path) -> None:
    write(folder / "t10k-labels-idx1-ubyte", np.array([1, 10, 2], np.uint8))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte must be 3 labels from 0 to 9.*the largest 10; fetch"):
        mnist(folder)


def test_images_of_another_size_are_refused(folder: Path) -> None:
    write(folder / "train-images-idx3-ubyte", np.zeros((7, 28, 27), np.uint8))
    with pytest.raises(DataError, match="images of 28 x 28 pixels, but they are 28 x 27; fetch"):
        mnist(folder)
