"""A module follows another exactly where it reads what that one returned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.module_chain import linked_calls


class Between(nn.Module):
    """Two modules, and something between them that is none."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 4), nn.ReLU(), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x), x))


def follows(model, x=None):
    with linked_calls(model) as links:
        model(torch.ones(2, 4) if x is None else x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return [link.follows for link in links]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda y, x: y, True), (lambda y, x: y.flatten(0), True), (lambda y, x: y.view(2, 2, 2), True),
        (lambda y, x: y + x, False), (lambda y, x: y.detach().add_(x), False), (lambda y, x: functional.relu(y), False),
        (lambda y, x: y[:1], False), (lambda y, x: x, False), (lambda y, x: y.clone(), False),
    ],
)  # fmt: skip
def test_a_view_of_everything_follows_and_a_sum_a_function_or_a_part_does_not(between, expected):
    assert follows(Between(between)) == [False, expected]


def test_modules_in_place_follow_each_other():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.0), nn.Linear(4, 2))
    assert follows(model) == [False, True, True, True, True]


def test_memory_that_is_used_again_is_not_taken_for_the_tensor_that_was_there():
    model = Between(lambda y, x: (y + x).sin())
    with torch.no_grad():
        assert all(follows(model) == [False, False] for _ in range(20))


def test_a_weight_layer_with_a_parametrization_is_one_module():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert follows(nn.Sequential(nn.Flatten(), layer, nn.ReLU())) == [False, True, True]
