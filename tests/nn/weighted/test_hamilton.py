"""Quaternions multiply as Hamilton's do."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.weighted.hamilton import hamilton_matrix, hamilton_product

UNITS = torch.eye(4, dtype=torch.float64)[1:]  # i, j, k


def conjugate(q):
    return q * torch.tensor([1.0, -1, -1, -1], dtype=q.dtype)


def matrix(q):
    return hamilton_matrix(q.reshape(4, 1, 1))


def test_the_known_product():
    p, q = torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])
    assert hamilton_product(p, q).tolist() == [-60, 12, 30, 24]
    assert (matrix(p) @ q).tolist() == [-60, 12, 30, 24]


def test_the_units_multiply_in_a_circle_and_their_order_counts():
    i, j, k = UNITS
    for a, b, c in ((i, j, k), (j, k, i), (k, i, j)):
        assert torch.equal(hamilton_product(a, b), c)
        assert torch.equal(hamilton_product(b, a), -c)
        assert hamilton_product(a, a).tolist() == [-1, 0, 0, 0]


def test_the_matrix_of_a_quaternion_times_its_transpose_is_the_square_of_its_length(draw):
    q = torch.tensor([1.0, 2, 3, 4])
    assert torch.equal(matrix(q) @ matrix(q).T, 30 * torch.eye(4))
    p, q = draw(4), draw(4)
    assert_close(matrix(q) @ matrix(q).T, q.square().sum() * torch.eye(4, dtype=q.dtype), rtol=1e-14, atol=1e-14)
    assert_close(hamilton_product(p, q).norm(), p.norm() * q.norm(), rtol=1e-14, atol=0)


def test_matrices_multiply_as_quaternions_and_the_transpose_is_the_conjugate(draw):
    p, q = draw(4), draw(4)
    assert_close(matrix(p) @ matrix(q), matrix(hamilton_product(p, q)), rtol=1e-13, atol=1e-14)
    assert torch.equal(matrix(q).T, matrix(conjugate(q)))


def test_products_are_associative_and_blocks_lie_along_any_dimension(draw):
    p, q, r = (draw(2, 12, 3) for _ in range(3))
    left = hamilton_product(hamilton_product(p, q, dim=1), r, dim=1)
    assert_close(left, hamilton_product(p, hamilton_product(q, r, dim=1), dim=1), rtol=1e-12, atol=1e-12)
    one = hamilton_product(p[1, 2::3, 0], q[1, 2::3, 0])
    assert_close(hamilton_product(p, q, dim=1)[1, 2::3, 0], one, rtol=0, atol=0)


def test_the_matrix_keeps_a_kernel_behind_the_channels(draw):
    weight = draw(4, 2, 3, 5, 6)
    real = hamilton_matrix(weight)
    assert real.shape == (8, 12, 5, 6)
    for o, i in ((0, 2), (1, 0)):
        assert torch.equal(real[o::2, i::3, 4, 1], matrix(weight[:, o, i, 4, 1]))


def test_sizes_that_hold_no_four_equal_blocks_are_refused():
    with pytest.raises(ValueError, match=r"same multiple of four at dim -1.*got \(5,\) and \(5,\); lay"):
        hamilton_product(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match=r"got \(4,\) and \(8,\)"):
        hamilton_product(torch.zeros(4), torch.zeros(8))
