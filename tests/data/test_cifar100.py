from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normlens.data.cifar100 import cifar100
from normlens.data.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of a coarse label 7, a fine label and random pixels."""
    rng = np.random.default_rng(0)
    for name, labels in (("train.bin", (0, 99, 42)), ("test.bin", (1, 98))):
        (tmp_path / name).write_bytes(b"".join(bytes([7, label]) + rng.bytes(3072) for label in labels))
    return tmp_path


def test_the_fine_label_is_the_class(folder: Path) -> None:
    data = cifar100(folder)
    assert data.train[1].tolist() == [0, 99, 42]
    assert data.test[1].tolist() == [1, 98]
    pixels = np.frombuffer((folder / "test.bin").read_bytes(), np.uint8)[2:3074].reshape(3, 32, 32)
    np.testing.assert_array_equal(data.test[0][0].numpy(), pixels.astype(np.float32) / np.float32(255))
    assert data.shape == (3, 32, 32)


def test_without_a_file_of_names_the_classes_are_numbers(folder: Path) -> None:
    assert cifar100(folder).classes == tuple(str(number) for number in range(100))


def test_the_file_of_names_names_the_classes_in_its_order(folder: Path) -> None:
    names = [f"name {number}" for number in reversed(range(100))]
    (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n\n", encoding="utf-8")
    assert list(cifar100(folder).classes) == names


def test_a_file_of_names_that_is_not_a_hundred_lines_is_refused(folder: Path) -> None:
    (folder / "fine_label_names.txt").write_text("apple\nbaby\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"fine_label_names\.txt must be 100 lines .*, but there are 2; fetch"):
        cifar100(folder)


def test_the_python_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"pickle")
    with pytest.raises(DataError, match="normlens never reads them; get the binary version"):
        cifar100(tmp_path)
