from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from normlens.data.digits import digits


def test_train_and_test_are_all_digits_of_scikit_learn_and_every_fifth_of_a_class_is_a_test_image() -> None:
    source, data = load_digits(), digits()
    seen = [0] * 10
    parts: dict[bool, list[int]] = {False: [], True: []}
    for index, label in enumerate(source.target):
        seen[label] += 1
        parts[seen[label] % 5 == 0].append(index)
    for (images, labels), indices in ((data.train, parts[False]), (data.test, parts[True])):
        np.testing.assert_array_equal(images[:, 0].numpy() * 16, source.images[indices])
        np.testing.assert_array_equal(labels.numpy(), source.target[indices])


def test_a_fifth_of_each_class_is_in_the_test_part() -> None:
    data = digits()
    train, test = (torch.bincount(labels, minlength=10) for _, labels in (data.train, data.test))
    assert (len(data.train[1]), len(data.test[1])) == (1442, 355)
    assert torch.equal(test, (train + test) // 5)


def test_digits_are_images_of_8_by_8_pixels_in_ten_classes() -> None:
    data = digits()
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
