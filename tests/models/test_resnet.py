from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.models.resnet import ResNet


def weights_on_the_way(model: nn.Module) -> int:
    """Count the weight layers from input to output, leaving out the shortcuts."""
    layers = (name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return sum("shortcut" not in name for name in layers)


@pytest.mark.parametrize("depth", [8, 14, 20, 32])
def test_the_depth_counts_the_weight_layers_from_input_to_output(depth: int) -> None:
    assert weights_on_the_way(ResNet((3, 32, 32), 10, norm=nn.BatchNorm2d, depth=depth)) == depth


def test_resnet_20_has_the_0_27_million_parameters_of_the_paper() -> None:
    # He et al. (2016), table 6: 0.27 M, with option A. Option B adds 1 x 1 convolutions and their norms.
    convolutions = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    norms, head = 2 * (7 * 16 + 6 * 32 + 6 * 64), 65 * 10
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    model = ResNet((3, 32, 32), 10, norm=nn.BatchNorm2d)
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + head + shortcuts
    assert round((convolutions + norms + head) / 1e6, 2) == 0.27


@pytest.mark.parametrize(("size", "sizes"), [(32, [32, 16, 8]), (28, [28, 14, 7]), (8, [8, 4, 2])])
def test_every_stage_but_the_first_halves_the_image(size: int, sizes: list[int]) -> None:
    model = ResNet((1, size, size), 10, norm=None, depth=8, widths=(4, 6, 8))
    x, seen = torch.zeros(2, 1, size, size), []
    for name, child in model.named_children():
        x = child(x)
        if name.startswith("stage"):
            seen.append(tuple(x.shape))
    assert seen == [(2, width, side, side) for width, side in zip((4, 6, 8), sizes, strict=True)]


def test_only_the_first_block_of_a_later_stage_has_weights_in_its_shortcut() -> None:
    model = ResNet((3, 32, 32), 10, norm=None, depth=20)
    shortcuts = [name for name, _ in model.named_parameters() if name.endswith("shortcut.conv.weight")]
    assert shortcuts == ["stage2.block1.shortcut.conv.weight", "stage3.block1.shortcut.conv.weight"]


@pytest.mark.parametrize(("depth", "near"), [(19, 14), (21, 20), (2, 8), (0, 8)])
def test_a_depth_between_two_networks_is_refused(depth: int, near: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 2 .* for 3 stages, got {depth}: pass e\.g\. {near}\."):
        ResNet((3, 32, 32), 10, norm=None, depth=depth)
