from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlens.models.blocks import Placement
from normlens.models.residual import ResidualBlock

TOLERANCE = 1e3 * torch.finfo(torch.float64).eps


def made(inputs: int, outputs: int, stride: int, placement: Placement) -> tuple[ResidualBlock, dict[str, Tensor]]:
    """A block in float64 and eval mode, the statistics, scales and shifts of its norms random, and its tensors."""
    generator = torch.Generator().manual_seed(0)
    block = ResidualBlock(
        inputs, outputs, stride=stride, norm=nn.BatchNorm2d, placement=placement, generator=generator
    ).double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return block.eval(), block.state_dict()


def normalized(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var")
    )
    return weight * (x - mean) / torch.sqrt(var + 1e-5) + bias


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 2), (4, 6, 1)])
def test_with_the_norm_before_the_activation_the_block_is_that_of_he_et_al(
    inputs: int, outputs: int, stride: int
) -> None:
    block, state = made(inputs, outputs, stride, "pre-activation")
    x = torch.randn(2, inputs, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden = F.conv2d(x, state["branch.conv1.weight"], stride=stride, padding=1)
    hidden = normalized(hidden, state, "branch.norm1").clamp(min=0)
    hidden = normalized(F.conv2d(hidden, state["branch.conv2.weight"], padding=1), state, "branch.norm2")
    around = x
    if (inputs, stride) != (outputs, 1):
        around = normalized(F.conv2d(x, state["shortcut.conv.weight"], stride=stride), state, "shortcut.norm")
    torch.testing.assert_close(block(x), (hidden + around).clamp(min=0), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 6, 2), (4, 6, 1)])
def test_with_the_norm_after_the_activation_every_norm_follows_a_relu(inputs: int, outputs: int, stride: int) -> None:
    block, state = made(inputs, outputs, stride, "post-activation")
    x = torch.randn(2, inputs, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden = F.conv2d(x, state["branch.conv1.weight"], stride=stride, padding=1).clamp(min=0)
    hidden = F.conv2d(normalized(hidden, state, "branch.norm1"), state["branch.conv2.weight"], padding=1)
    around = x if (inputs, stride) == (outputs, 1) else F.conv2d(x, state["shortcut.conv.weight"], stride=stride)
    expected = normalized((hidden + around).clamp(min=0), state, "output.norm")
    torch.testing.assert_close(block(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_without_norm_every_convolution_has_a_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    block = ResidualBlock(4, 6, stride=2, norm=None, placement="pre-activation", generator=generator)
    assert sorted(name for name, _ in block.named_parameters() if name.endswith("bias")) == [
        "branch.conv1.bias",
        "branch.conv2.bias",
        "shortcut.conv.bias",
    ]
