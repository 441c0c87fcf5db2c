from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.models.mlp import MLP

TOLERANCE = 1e3 * torch.finfo(torch.float64).eps


def examples(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_without_norm_the_network_is_an_alternation_of_matrices_and_relu() -> None:
    model = MLP((1, 4, 4), 3, norm=None, widths=(5, 7)).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    state, x = model.state_dict(), examples(6, 1, 4, 4)
    hidden = x.reshape(6, 16)
    for name in ("block1.linear", "block2.linear"):
        hidden = (hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]).clamp(min=0)
    expected = hidden @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(model(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("placement", ["pre-activation", "post-activation"])
def test_a_norm_stands_before_or_after_the_relu(placement: str) -> None:
    model = MLP((16,), 3, norm=nn.BatchNorm1d, placement=placement, widths=(5,)).double()  # type: ignore[arg-type]
    state, x = model.state_dict(), examples(6, 16)

    def normalized(h: Tensor) -> Tensor:
        return (h - h.mean(0)) / torch.sqrt(h.var(0, correction=0) + 1e-5)

    weighted = x @ state["block1.linear.weight"].T
    pre = placement == "pre-activation"
    hidden = normalized(weighted).clamp(min=0) if pre else normalized(weighted.clamp(min=0))
    torch.testing.assert_close(model(x), hidden @ state["head.weight"].T, rtol=TOLERANCE, atol=TOLERANCE)


def test_blocks_are_numbered_from_one_and_as_wide_as_asked() -> None:
    model = MLP((1, 8, 8), 10, norm=None, widths=(5, 7, 9))
    assert [name for name, _ in model.named_children()] == ["flatten", "block1", "block2", "block3", "head"]
    weights = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert weights == [(5, 64), (7, 5), (9, 7), (10, 9)]


def test_widths_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="one or more positive numbers"):
        MLP((4,), 2, norm=None, widths=())
