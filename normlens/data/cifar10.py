"""CIFAR-10: colour photographs of 32 x 32 pixels in ten classes, read from the binary version."""

from __future__ import annotations

from pathlib import Path

from normlens.data._cifar_binary import find_folder, read_records
from normlens.data.images import ImageData

__all__ = ["cifar10"]

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(data_dir: str | Path) -> ImageData:
    """Read CIFAR-10: ``(N, 3, 32, 32)``, float32 in [0, 1], ten classes.

    The folder, or ``cifar-10-batches-bin`` in it, holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and
    ``test_batch.bin``: records of a label and 3072 pixels, any number of them. The python version is made of pickles,
    which normlens never reads.

    Args:
        data_dir: the folder.

    Raises:
        DataError: a file is missing, truncated or not what its name says.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, technical report, 2009.
    """
    folder = find_folder(
        data_dir, first_file=TRAIN_FILES[0], binary="cifar-10-batches-bin", python="cifar-10-batches-py"
    )
    return ImageData(
        name="cifar10",
        train=read_records([folder / name for name in TRAIN_FILES], label_bytes=1, classes=len(CLASSES)),
        test=read_records([folder / TEST_FILE], label_bytes=1, classes=len(CLASSES)),
        classes=CLASSES,
    )
