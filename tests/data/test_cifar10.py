from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normlens.data.cifar10 import cifar10
from normlens.data.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images in each train file, labeled by the number of the file, and three test images."""
    rng = np.random.default_rng(0)
    for number in range(1, 6):
        records = b"".join(bytes([number]) + rng.bytes(3072) for _ in range(2))
        (tmp_path / f"data_batch_{number}.bin").write_bytes(records)
    (tmp_path / "test_batch.bin").write_bytes(b"".join(bytes([label]) + rng.bytes(3072) for label in (0, 9, 6)))
    return tmp_path


def test_five_files_make_the_train_part_in_their_order_and_one_the_test_part(folder: Path) -> None:
    data = cifar10(folder)
    assert data.train[1].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert data.test[1].tolist() == [0, 9, 6]
    pixels = np.frombuffer((folder / "data_batch_2.bin").read_bytes(), np.uint8)[1:3073].reshape(3, 32, 32)
    np.testing.assert_array_equal(data.train[0][2].numpy(), pixels.astype(np.float32) / np.float32(255))
    assert data.shape == (3, 32, 32)


def test_the_classes_are_the_ten_of_the_publication(folder: Path) -> None:
    data = cifar10(folder)
    assert [data.classes[label] for label in data.test[1].tolist()] == ["airplane", "truck", "frog"]
    assert len(set(data.classes)) == 10


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_a_single_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} must be records of 3073 bytes .*no such file"):
        cifar10(folder)


def test_the_python_version_is_never_opened(tmp_path: Path) -> None:
    # a pickle that would make a folder when loaded
    code = f"cos\nmkdir\n(S'{tmp_path}/opened'\ntR.".encode()
    for within in (tmp_path, tmp_path / "cifar-10-batches-py"):
        within.mkdir(exist_ok=True)
        (within / "data_batch_1").write_bytes(code)
        with pytest.raises(DataError, match=r"data_batch_1\.bin must be .* never reads them; get the binary version"):
            cifar10(tmp_path)
    assert not (tmp_path / "opened").exists()
