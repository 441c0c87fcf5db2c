from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normlens.models.blocks import Placement, chain, placed, weight_block


def test_the_norm_stands_on_the_side_of_the_relu_that_the_placement_says() -> None:
    norm = nn.BatchNorm1d(3)
    assert placed(norm, "pre-activation") == (norm, None)
    assert placed(norm, "post-activation") == (None, norm)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d(3)])
def test_an_unknown_placement_is_refused_with_and_without_a_norm(norm: nn.Module | None) -> None:
    placement: Any = "pre"
    with pytest.raises(ValueError, match=r"'pre-activation' .* or 'post-activation' .*, got 'pre': choose one"):
        placed(norm, placement)


def test_a_chain_applies_named_steps_in_order_and_leaves_out_none() -> None:
    steps = chain(("flip", nn.Flatten()), ("nothing", None), ("cut", nn.ReLU()))
    assert [name for name, _ in steps.named_children()] == ["flip", "cut"]
    x = torch.linspace(-1, 1, 8).reshape(2, 2, 2)
    assert torch.equal(steps(x), x.flatten(1).clamp(min=0))


@pytest.mark.parametrize(
    ("placement", "names"),
    [("pre-activation", ["linear", "norm", "relu"]), ("post-activation", ["linear", "relu", "norm"])],
)
def test_a_block_is_weight_norm_relu_or_weight_relu_norm(placement: Placement, names: list[str]) -> None:
    block = weight_block("linear", nn.Linear(2, 3, device="meta"), nn.BatchNorm1d(3), placement)
    assert [name for name, _ in block.named_children()] == names


def test_a_block_without_norm_is_weight_and_relu() -> None:
    block = weight_block("conv", nn.Conv2d(2, 3, 1, device="meta"), None, "post-activation")
    assert [name for name, _ in block.named_children()] == ["conv", "relu"]
