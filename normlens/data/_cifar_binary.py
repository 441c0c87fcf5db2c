"""The binary version of CIFAR-10 and CIFAR-100: records of label bytes and 3072 pixel bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normlens.data.errors import DataError

__all__ = ["PUBLISHED", "find_folder", "read_records"]

PUBLISHED = "www.cs.toronto.edu/~kriz/cifar.html"
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


def read_records(paths: Sequence[Path], *, label_bytes: int, classes: int) -> tuple[Tensor, Tensor]:
    """Read records of ``label_bytes`` bytes, the last of which is the class, and 3 x 32 x 32 pixels, red first.

    Args:
        paths: the files, in the order in which their images shall stand.
        label_bytes: 1 for CIFAR-10; 2 (coarse, fine) for CIFAR-100.
        classes: the number of classes; a label must be smaller.

    Returns:
        Images ``(N, 3, 32, 32)``, float32 in [0, 1], and classes ``(N,)``, int64.

    Raises:
        DataError: a file is missing, not a whole number of records, or holds a label that is too large.
    """
    records = np.concatenate([_read_file(path, label_bytes, classes) for path in paths])
    pixels = records[:, label_bytes:].astype(np.float32) / np.float32(255)
    labels = records[:, label_bytes - 1].astype(np.int64)
    return torch.from_numpy(pixels.reshape(-1, *SHAPE)), torch.from_numpy(labels)


def find_folder(data_dir: str | Path, *, first_file: str, binary: str, python: str) -> Path:
    """Return ``data_dir``, or the folder within it that the published archive unpacks to.

    Args:
        data_dir: where the user says the data are.
        first_file: a file of the binary version.
        binary: the folder in the archive of the binary version.
        python: the folder in the archive of the python version.

    Raises:
        DataError: the binary version is not there; when the python version is, the message says why it is no use.
    """
    given = Path(data_dir)
    for folder in (given, given / binary):
        if (folder / first_file).is_file():
            return folder
    pickled = Path(first_file).stem
    for folder in (given, given / python):
        if (folder / pickled).is_file():
            raise DataError.about(
                given / first_file,
                must="a file of the binary version",
                came=f"only the python version is there ({folder / pickled}), whose files are pickles: these can run "
                "code when they are loaded, so normlens never reads them; get the binary version",
                published=PUBLISHED,
            )
    raise DataError.about(
        given / first_file,
        must=f"a file of the binary version (or lie in {binary})",
        came="there is no such file",
        published=PUBLISHED,
    )


def _read_file(path: Path, label_bytes: int, classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    record = label_bytes + PIXELS
    must = f"records of {record} bytes ({label_bytes} for labels, {PIXELS} for pixels)"
    if not path.is_file():
        raise DataError.about(path, must=must, came="there is no such file", published=PUBLISHED)
    size = path.stat().st_size
    if size == 0 or size % record:
        raise DataError.about(
            path, must=must, came=f"its {size} bytes are {size / record:.3f} records", published=PUBLISHED
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    largest = int(records[:, label_bytes - 1].max())
    if largest >= classes:
        raise DataError.about(
            path, must=f"labeled from 0 to {classes - 1}", came=f"there is a label {largest}", published=PUBLISHED
        )
    return records
