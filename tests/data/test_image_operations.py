from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normlens.data import image_operations as ops

EPS = torch.finfo(torch.float64).eps


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3, 4])
def test_a_quarter_turn_is_rot90(quarters):
    x = pictures(2, 3, 8, 8)
    torch.testing.assert_close(ops.turn(x, 90 * quarters), torch.rot90(x, quarters, (2, 3)), rtol=0, atol=50 * EPS)


def test_a_half_turn_of_a_picture_that_is_not_square_flips_both_axes():
    x = pictures(1, 1, 4, 7)
    torch.testing.assert_close(ops.turn(x, 180), x.flip(2, 3), rtol=0, atol=50 * EPS)


def test_the_strength_of_a_rotation_is_of_30_degrees_counterclockwise():
    x = pictures(1, 2, 6, 6)
    assert torch.equal(ops.rotate(x, -0.5), ops.turn(x, -15))
    assert torch.equal(ops.rotate(x, 1.0), ops.turn(x, 30))


@pytest.mark.parametrize(("strength", "pixels"), [(1 / 3, 1), (1.0, 3), (-2 / 3, -2)])
def test_translations_move_whole_pixels_to_the_left_and_up(strength, pixels):
    x = pictures(2, 1, 9, 9)
    expected = torch.zeros_like(x)
    if pixels > 0:
        expected[..., :-pixels] = x[..., pixels:]
    else:
        expected[..., -pixels:] = x[..., :pixels]
    torch.testing.assert_close(ops.translate_x(x, strength), expected, rtol=0, atol=100 * EPS)
    torch.testing.assert_close(ops.translate_y(x.mT, strength), expected.mT, rtol=0, atol=100 * EPS)


def test_a_shear_reads_a_ramp_where_it_stood():
    """Of the ramp x it makes x + 0.3 s y (y downward from the center), and the same with the axes exchanged."""
    x, y = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in (10, 6))
    ramp = (0.5 + 0.05 * x).expand(1, 1, 6, 10)
    expected = ramp + 0.05 * 0.3 * 0.5 * y[:, None]
    inside = (..., slice(None), slice(1, 9))  # the outermost columns read from beyond the edge
    torch.testing.assert_close(ops.shear_x(ramp, 0.5)[inside], expected[inside], rtol=0, atol=50 * EPS)
    torch.testing.assert_close(ops.shear_y(ramp.mT, 0.5).mT[inside], expected[inside], rtol=0, atol=50 * EPS)


def test_autocontrast_fills_the_unit_interval_and_leaves_constants():
    x = torch.cat([0.3 + 0.2 * pictures(1, 2, 4, 4), torch.full((1, 2, 4, 4), 0.7, dtype=torch.float64)])
    y = ops.autocontrast(x)
    low, high = x[:1].amin((2, 3), keepdim=True), x[:1].amax((2, 3), keepdim=True)
    torch.testing.assert_close(y[:1], (x[:1] - low) / (high - low), rtol=4 * EPS, atol=0)
    assert torch.equal(y[1:], x[1:])


def test_equalization_makes_ranks_of_distinct_levels():
    """Of N distinct levels the k-th smallest becomes (k - 1) / (N - 1)."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    x = (7 * order.double() + 5).reshape(1, 1, 4, 4) / 255
    torch.testing.assert_close(ops.equalize(x), order.double().reshape(1, 1, 4, 4) / 15, rtol=4 * EPS, atol=0)
    constant = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    assert torch.equal(ops.equalize(constant), constant)


@pytest.mark.parametrize(("strength", "dropped"), [(0.0, 0), (0.5, 2), (-1.0, 4)])
def test_posterizing_clears_the_lowest_bits(strength, dropped):
    levels = np.arange(256, dtype=np.uint8)
    expected = (levels >> dropped) << dropped
    found = ops.posterize(torch.from_numpy(levels / 255).reshape(1, 1, 16, 16), strength)
    np.testing.assert_array_equal((found * 255).round().numpy().ravel(), expected)


def test_solarizing_inverts_what_is_bright():
    x = torch.tensor([0.1, 0.69, 0.7, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    expected = torch.tensor([0.1, 0.69, 0.3, 0.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    torch.testing.assert_close(ops.solarize(x, -0.3), expected, rtol=0, atol=2 * EPS)


@pytest.mark.parametrize("operation", ops.OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_operation_keeps_shape_dtype_range_and_treats_images_alone(operation, dtype):
    x = pictures(3, 2, 6, 5).to(dtype)
    together = operation(x, 0.4)
    assert (together.shape, together.dtype) == (x.shape, dtype)
    assert together.min() >= 0
    assert together.max() <= 1 + torch.finfo(dtype).eps
    torch.testing.assert_close(torch.cat([operation(one, 0.4) for one in x.split(1)]), together)


def test_nine_operations_are_offered_and_no_two_do_the_same():
    x = pictures(2, 2, 6, 6)
    made = [operation(x, 0.4) for operation in ops.OPERATIONS]
    assert len(made) == 9
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(made) for b in made[:i])


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(ValueError, match=r"blur needs floating-point images \(N, C, H, W\) .*; got .*; add"):
        ops.check_images(images, what="blur")
