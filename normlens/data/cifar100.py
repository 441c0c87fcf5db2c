"""CIFAR-100: colour photographs of 32 x 32 pixels in a hundred classes, read from the binary version."""

from __future__ import annotations

from pathlib import Path

from normlens.data._cifar_binary import PUBLISHED, find_folder, read_records
from normlens.data.errors import DataError
from normlens.data.images import ImageData

__all__ = ["cifar100"]

COUNT = 100
NAMES_FILE = "fine_label_names.txt"


def cifar100(data_dir: str | Path) -> ImageData:
    """Read CIFAR-100 with its fine labels: ``(N, 3, 32, 32)``, float32 in [0, 1], a hundred classes.

    The folder, or ``cifar-100-binary`` in it, holds ``train.bin`` and ``test.bin``: records of a coarse label, a fine
    label and 3072 pixels, any number of them. The classes are named by ``fine_label_names.txt`` where it is present,
    and "0" to "99" otherwise. The python version is made of pickles, which normlens never reads.

    Args:
        data_dir: the folder.

    Raises:
        DataError: a file is missing, truncated or not what its name says.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, technical report, 2009.
    """
    folder = find_folder(data_dir, first_file="train.bin", binary="cifar-100-binary", python="cifar-100-python")
    return ImageData(
        name="cifar100",
        train=read_records([folder / "train.bin"], label_bytes=2, classes=COUNT),
        test=read_records([folder / "test.bin"], label_bytes=2, classes=COUNT),
        classes=_class_names(folder / NAMES_FILE),
    )


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(str(number) for number in range(COUNT))
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) != COUNT:
        raise DataError.about(
            path, must=f"{COUNT} lines with a name each", came=f"there are {len(names)}", published=PUBLISHED
        )
    return names
