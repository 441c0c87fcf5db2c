"""Patches: 32 x 32 colour patches of two real photographs that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normlens.data.images import ImageData

__all__ = ["patches"]

SIZE = 32
STRIDE = 16
TRAIN_COLUMNS = ((0, 256), (384, 640))
TEST_COLUMNS = ((256, 384),)


def patches() -> ImageData:
    """Cut the two sample photographs of scikit-learn into ``(N, 3, 32, 32)`` patches, float32 in [0, 1].

    The task is to say which photograph; the point is the statistics of natural images (correlated pixels and channels,
    a power-law spectrum), which synthetic data lack. Neighboring patches of a part share half their
    pixels (stride 16), but the test patches come from a vertical band of each photograph (columns 256 to 383) of
    which no training patch holds a pixel. 1500 train and 350 test patches, half of each photograph.

    Source: ``sklearn.datasets.load_sample_images``; "china" by danielbuechele and "flower" by vultilion, both on Flickr
    under CC BY 2.0. How a JPEG is decoded may differ by one level of 255 between versions of pillow.
    """
    from sklearn.datasets import load_sample_images  # here: it takes a second to import

    photographs = [torch.from_numpy(np.array(pixels)).permute(2, 0, 1) for pixels in load_sample_images().images]
    return ImageData(
        name="patches",
        train=_part(photographs, TRAIN_COLUMNS),
        test=_part(photographs, TEST_COLUMNS),
        classes=("china", "flower"),
    )


def _part(photographs: list[Tensor], columns: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Cut every photograph within the given columns; the label is its index."""
    cut = [torch.cat([_cut(pixels[:, :, left:right]) for left, right in columns]) for pixels in photographs]
    labels = [torch.full((len(found),), index) for index, found in enumerate(cut)]
    return torch.cat(cut).to(torch.float32) / 255.0, torch.cat(labels)


def _cut(region: Tensor) -> Tensor:
    """Cut a region ``(C, H, W)`` into all patches ``(N, C, SIZE, SIZE)`` that lie in it wholly."""
    windows = region.unfold(1, SIZE, STRIDE).unfold(2, SIZE, STRIDE)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, region.shape[0], SIZE, SIZE)
