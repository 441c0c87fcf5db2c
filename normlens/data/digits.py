"""Digits: 1797 real handwritten digits of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from normlens.data.images import ImageData

__all__ = ["digits"]

TEST_EVERY = 5


def digits() -> ImageData:
    """Load the 1797 digits of scikit-learn: ``(N, 1, 8, 8)``, float32 in [0, 1], ten classes.

    A pixel counts the dark ones among 4 x 4 pixels of a scan, so it is a multiple of 1/16. In each class every fifth
    image, beginning with the fifth, is a test image: a stratified division of 80 to 20 that no version of a random
    number generator can change. The same writers are on both sides.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998, the test set, as in ``sklearn.datasets.load_digits``.
    """
    from sklearn.datasets import load_digits  # here: it takes a second to import

    source = load_digits()
    images = torch.from_numpy((source.images / 16.0).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(source.target.astype(np.int64))
    test = _is_test(labels)
    return ImageData(
        name="digits",
        train=(images[~test], labels[~test]),
        test=(images[test], labels[test]),
        classes=tuple(str(digit) for digit in range(10)),
    )


def _is_test(labels: torch.Tensor) -> torch.Tensor:
    """Mark every fifth example of each class."""
    rank = torch.nn.functional.one_hot(labels).cumsum(0).gather(1, labels[:, None]).squeeze(1)
    return rank % TEST_EVERY == 0
