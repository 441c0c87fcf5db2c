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


@pytest.mark.parametrize(("norm", "kind"), [("dropout", torch.nn.Dropout), ("spatial_dropout", torch.nn.Dropout2d)])
@pytest.mark.parametrize("placement", ["pre-activation", "post-activation"])
def test_gates_may_stand_in_the_place_of_a_norm_and_leave_the_weights_and_their_biases(norm, kind, placement) -> None:
    gated, plain = (CNN((1, 8, 8), 3, norm=choice, placement=placement, widths=(4, 5)) for choice in (norm, None))
    assert [type(gated.get_submodule(f"block{n}.norm")) for n in (1, 2)] == [kind, kind]
    assert gated.block1.norm.p == 0.2
    order = ["conv", "norm", "relu"] if placement == "pre-activation" else ["conv", "relu", "norm"]
    assert [name for name, _ in gated.block1.named_children()] == order
    assert gated.state_dict().keys() == plain.state_dict().keys()
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(gated.eval()(x), plain(x))
