from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from normlens.data._cifar_binary import find_folder, read_records
from normlens.data.errors import DataError


def write(path: Path, labels: list[list[int]], seed: int = 0) -> Path:
    """Write a record for each list of label bytes, with random pixels."""
    rng = np.random.default_rng(seed)
    path.write_bytes(b"".join(bytes(label) + rng.bytes(3072) for label in labels))
    return path


@pytest.mark.parametrize("labels", [[[3], [9], [0]], [[19, 3], [0, 9], [7, 0]]])
def test_the_last_label_byte_is_the_class_and_pixels_come_by_color_row_and_column(
    tmp_path: Path, labels: list[list[int]]
) -> None:
    path, width = write(tmp_path / "a.bin", labels), len(labels[0])
    images, classes = read_records([path], label_bytes=width, classes=10)
    content = path.read_bytes()
    for n, c, i, j in [(0, 0, 0, 0), (0, 2, 31, 31), (1, 1, 4, 7), (2, 0, 31, 0), (2, 2, 0, 31)]:
        byte = content[n * (width + 3072) + width + c * 1024 + i * 32 + j]
        assert images[n, c, i, j].item() == np.float32(byte) / np.float32(255)
    assert images.shape == (3, 3, 32, 32)
    assert classes.tolist() == [3, 9, 0]


def test_files_are_joined_in_the_given_order(tmp_path: Path) -> None:
    first, second = write(tmp_path / "b.bin", [[1], [2]]), write(tmp_path / "a.bin", [[3]], seed=1)
    images, classes = read_records([first, second], label_bytes=1, classes=10)
    assert classes.tolist() == [1, 2, 3]
    assert images[2, 0, 0, 0].item() == np.float32(second.read_bytes()[1]) / np.float32(255)


@pytest.mark.parametrize(
    ("size", "came"), [(0, "0.000 records"), (3072, "1.000 records"), (3073 * 2 - 1, "2.000 records")]
)
def test_a_file_that_is_not_a_whole_number_of_records_is_refused(tmp_path: Path, size: int, came: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(size))
    must = re.escape(f"{path} must be records of 3073 bytes (1 for labels, 3072 for pixels)")
    with pytest.raises(DataError, match=f"{must}, but its {size} bytes are {came}; fetch .* from www.cs.toronto.edu"):
        read_records([path], label_bytes=1, classes=10)


def test_a_label_without_a_class_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", [[3], [10]])
    with pytest.raises(DataError, match=r"a\.bin must be labeled from 0 to 9, but there is a label 10; fetch"):
        read_records([path], label_bytes=1, classes=10)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.bin must be records of 3074 bytes .*, but there is no such file; fetch"):
        read_records([tmp_path / "a.bin"], label_bytes=2, classes=100)


def find(data_dir: str | Path) -> Path:
    return find_folder(data_dir, first_file="one.bin", binary="cifar-bin", python="cifar-py")


@pytest.mark.parametrize("within", [".", "cifar-bin"])
def test_the_folder_is_the_given_one_or_that_of_the_archive_within_it(tmp_path: Path, within: str) -> None:
    folder = tmp_path / within
    folder.mkdir(exist_ok=True)
    write(folder / "one.bin", [[1]])
    assert find(str(tmp_path)) == folder


@pytest.mark.parametrize("within", [".", "cifar-py"])
def test_the_python_version_is_refused_because_its_files_are_pickles(tmp_path: Path, within: str) -> None:
    folder = tmp_path / within
    folder.mkdir(exist_ok=True)
    (folder / "one").write_bytes(b"pickle")
    with pytest.raises(
        DataError, match=r"python version is there .* pickles.* never reads them; get the binary version"
    ):
        find(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"one\.bin must be .*\(or lie in cifar-bin\), but there is no such file; fetch"
    ):
        find(tmp_path)


def test_the_binary_version_is_read_even_beside_the_python_version(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"pickle")
    write(tmp_path / "one.bin", [[1]])
    assert find(tmp_path) == tmp_path
