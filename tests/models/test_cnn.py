from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from normlens.models.cnn import CNN

TOLERANCE = 1e3 * torch.finfo(torch.float64).eps


def test_without_norm_the_network_is_convolutions_with_relu_and_pooling_between_them() -> None:
    model = CNN((2, 9, 8), 3, norm=None, widths=(4, 5, 6)).double()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-1, 1, generator=generator)
    x = torch.randn(6, 2, 9, 8, dtype=torch.float64, generator=generator)
    state, hidden = model.state_dict(), x
    for number in (1, 2, 3):
        weight, bias = (state[f"block{number}.conv.{key}"] for key in ("weight", "bias"))
        hidden = F.conv2d(hidden, weight, bias, padding=1).clamp(min=0)
        if number < 3:
            hidden = F.max_pool2d(hidden, 2)
    expected = hidden.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(model(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_blocks_and_pools_are_numbered_from_one_and_there_are_as_many_as_asked() -> None:
    model = CNN((1, 8, 8), 10, norm=None, widths=(4, 5))
    assert [name for name, _ in model.named_children()] == [
        "block1", "pool1", "block2", "average", "flatten", "head",
    ]  # fmt: skip
    weights = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert weights == [(4, 1, 3, 3), (5, 4, 3, 3), (10, 5)]


def test_the_smallest_image_is_that_which_the_pools_leave_one_pixel_of() -> None:
    assert CNN((1, 4, 4), 2, norm=None)(torch.zeros(1, 1, 4, 4)).shape == (1, 2)
    with pytest.raises(ValueError, match="at least 4 x 4 pixels, got 4 x 3: pass fewer widths"):
        CNN((1, 4, 3), 2, norm=None)


def test_widths_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="one or more positive numbers"):
        CNN((1, 4, 4), 2, norm=None, widths=(4, 0))
