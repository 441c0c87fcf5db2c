"""MNIST: handwritten digits of 28 x 28 pixels, read from the IDX files as they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normlens.data._idx import read_idx
from normlens.data.errors import DataError
from normlens.data.images import ImageData

__all__ = ["mnist"]

PUBLISHED = "yann.lecun.com/exdb/mnist"
SIDE = 28
CLASSES = tuple(str(digit) for digit in range(10))


def mnist(data_dir: str | Path) -> ImageData:
    """Read MNIST: ``(N, 1, 28, 28)``, float32 in [0, 1], ten classes.

    The folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, each plain or as ``.gz``; the spelling ``train-images.idx3-ubyte`` is understood too.
    Any number of images is accepted as long as there is a label for each; data sets of the same format
    (Fashion-MNIST, KMNIST) can be read as well, under class names 0 to 9.

    Args:
        data_dir: the folder with the four files.

    Raises:
        DataError: a file is missing, truncated or not what its name says.

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition,
    Proceedings of the IEEE 86(11), 1998.
    """
    folder = Path(data_dir)
    return ImageData(name="mnist", train=_part(folder, "train"), test=_part(folder, "t10k"), classes=CLASSES)


def _part(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    images_file = _find(folder, f"{prefix}-images", "idx3-ubyte")
    images = read_idx(images_file, ndim=3, published=PUBLISHED)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError.about(
            images_file,
            must=f"images of {SIDE} x {SIDE} pixels",
            came=f"they are {images.shape[1]} x {images.shape[2]}",
            published=PUBLISHED,
        )
    labels_file = _find(folder, f"{prefix}-labels", "idx1-ubyte")
    labels = read_idx(labels_file, ndim=1, published=PUBLISHED)
    if len(labels) != len(images) or labels.max() >= len(CLASSES):
        raise DataError.about(
            labels_file,
            must=f"{len(images)} labels from 0 to 9, one for each image of {images_file.name}",
            came=f"it holds {len(labels)} with the largest {labels.max()}",
            published=PUBLISHED,
        )
    pixels = images.astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _find(folder: Path, stem: str, kind: str) -> Path:
    """Return the first of the known spellings that is a file."""
    spellings = [f"{stem}{mark}{kind}{end}" for mark in "-." for end in ("", ".gz")]
    for spelling in spellings:
        if (folder / spelling).is_file():
            return folder / spelling
    raise DataError.about(
        folder / spellings[0],
        must=f"an IDX file (or one of {', '.join(spellings[1:])})",
        came="there is no such file",
        published=PUBLISHED,
    )
