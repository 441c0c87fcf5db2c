"""What the layers with weights share: how they draw, what they refuse, how they are shown."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from normlens.nn.weighted.base import Weighted, check_sizes, draw_normal_


class Doubled(Weighted):
    def __init__(self, features: int, *, generator: torch.Generator, act=torch.tanh, device=None, dtype=None) -> None:
        super().__init__()
        self.features, self.act = features, act

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x, ("N", "features"), dim=1, size=self.features)
        return 2 * x


def test_weights_are_normal_of_the_given_spread():
    weight = torch.empty(100, 200)
    draw_normal_(weight, std=0.5, generator=torch.Generator().manual_seed(0))
    assert stats.kstest(weight.flatten().numpy(), stats.norm(scale=0.5).cdf).pvalue > 1e-3


def test_every_dtype_gets_the_same_numbers_up_to_rounding():
    drawn = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.empty(3, 4, dtype=dtype))
        draw_normal_(weight, std=1.0, generator=torch.Generator().manual_seed(1))
        drawn.append(weight.detach())
    assert torch.equal(drawn[0].float(), drawn[1])
    assert torch.equal(drawn[0].bfloat16(), drawn[2])


def test_drawing_goes_by_the_generator_whatever_the_default_device():
    weight, again = torch.empty(3, 4), torch.empty(3, 4)
    draw_normal_(weight, std=1.0, generator=torch.Generator().manual_seed(1))
    with torch.device("meta"):
        draw_normal_(again, std=1.0, generator=torch.Generator("cpu").manual_seed(1))
    assert torch.equal(weight, again)


def test_the_repr_shows_the_settings_and_functions_by_their_name():
    layer = Doubled(3, generator=torch.Generator())
    assert repr(layer) == "Doubled(features=3, act=tanh)"


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 1), ()])
def test_an_input_of_another_size_is_refused(shape):
    layer = Doubled(3, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"Doubled needs \(N, features\) with features=3 at dim 1; got \(.*; reshape"):
        layer(torch.ones(shape))


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"Doubled needs a floating-point input; got torch.int64; convert it with"):
        Doubled(3, generator=torch.Generator())(torch.ones(4, 3, dtype=torch.int64))


def test_a_size_below_one_is_refused_by_its_name():
    check_sizes(Doubled, {"features": 1, "others": 2})
    with pytest.raises(ValueError, match=r"Doubled needs others of at least 1; got 0; give a positive size"):
        check_sizes(Doubled, {"features": 1, "others": 0})
