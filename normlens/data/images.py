"""ImageData: labeled images in memory, divided into a train and a test part."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from normlens.data.batching import Batches

__all__ = ["ImageData"]


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and the class of each.

    Attributes:
        name: the name of the data set.
        train: images ``(N, C, H, W)``, float32 in [0, 1], and classes ``(N,)``, int64 in ``0, ..., len(classes) - 1``.
        test: the same for images that no training may see.
        classes: the name of each class.

    Raises:
        ValueError: a part is not what is said above, or train and test images differ in shape.
    """

    name: str
    train: tuple[Tensor, Tensor] = field(repr=False)
    test: tuple[Tensor, Tensor] = field(repr=False)
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, (images, labels) in (("train", self.train), ("test", self.test)):
            where = f"{self.name}, {part}"
            _check_images(where, images)
            _check_labels(where, labels, images=len(images), classes=len(self.classes))
        if self.train[0].shape[1:] != self.test[0].shape[1:]:
            raise ValueError(
                f"{self.name}: train and test images must have one shape, got {tuple(self.train[0].shape[1:])} and "
                f"{tuple(self.test[0].shape[1:])}: resize or crop one of them."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape ``(C, H, W)`` of one image."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width

    def loader(self, batch_size: int, *, seed: int) -> Batches:
        """Shuffle the train part into batches.

        Args:
            batch_size: examples in a batch.
            seed: decides the order of every epoch.
        """
        return Batches(*self.train, batch_size=batch_size, seed=seed)


def _check_images(where: str, images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0 or images.dtype != torch.float32:
        raise ValueError(
            f"{where}: images must be float32 of shape (N, C, H, W) with N >= 1, "
            f"got {images.dtype} of shape {tuple(images.shape)}: reshape or convert them."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that nan fails too
        raise ValueError(f"{where}: images must lie in [0, 1], got [{low}, {high}]: divide by the largest value.")


def _check_labels(where: str, labels: Tensor, *, images: int, classes: int) -> None:
    if labels.shape != (images,) or labels.dtype != torch.int64:
        raise ValueError(
            f"{where}: classes must be int64 of shape ({images},), one for each image, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}: convert or match them."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{where}: classes must lie in 0, ..., {classes - 1}, got {low}, ..., {high}: name every class."
        )
