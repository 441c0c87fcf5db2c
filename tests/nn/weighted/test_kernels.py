"""A kernel is a tuple of one to three positive sizes."""

from __future__ import annotations

import pytest

from normlens.nn.weighted.kernels import check_kernel
from normlens.nn.weighted.stochastic_synapse import NSMConv


@pytest.mark.parametrize("kernel", [3, (), (1, 1, 1, 1), (3, 0)])
def test_another_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match=r"NSMConv needs kernel_size .* got .*; write \(3, 3\) for images"):
        check_kernel(NSMConv, kernel)


@pytest.mark.parametrize("kernel", [(1,), (3, 2), (1, 2, 3)])
def test_one_to_three_sizes_pass(kernel):
    check_kernel(NSMConv, kernel)
