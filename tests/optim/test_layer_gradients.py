from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normlens.optim.layer_gradients import check_biases, check_channels, has_gradients, precondition_gradients

LAYERS = {
    "linear": lambda: nn.Linear(4, 6),
    "conv": lambda: nn.Conv2d(4, 6, (2, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
    "depthwise": lambda: nn.Conv1d(4, 8, 3, groups=4),
}


def with_gradients(name: str, draw: Callable[..., Tensor], dtype: torch.dtype = torch.float64) -> nn.Module:
    layer = LAYERS[name]().to(dtype)
    for parameter in layer.parameters():
        parameter.grad = draw(*parameter.shape, dtype=dtype)
    return layer


def moments(layer: nn.Module, draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    groups = getattr(layer, "groups", 1)
    return draw(groups, 4 // groups), draw(groups, 4 // groups).square() + 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_every_units_gradient_is_multiplied_by_p_p_transposed(name: str, draw: Callable[..., Tensor]) -> None:
    """P of one unit, [[1, -mu'], [0, I]] diag(1, sqrt(p)), dense, over the weights of its group."""
    layer = with_gradients(name, draw)
    mean, precision = moments(layer, draw)
    before = [p.grad.clone() for p in layer.parameters()]
    precondition_gradients(layer, mean, precision, 0.3)
    units = len(before[0])
    for unit in range(units):
        group = unit * len(mean) // units
        places = before[0][0, 0].numel()
        mu, p = (m[group].repeat_interleave(places) for m in (mean, precision))
        root = torch.eye(len(mu) + 1, dtype=torch.float64)
        root[0, 1:] = -mu
        root = root @ torch.diag(torch.cat([torch.ones(1, dtype=torch.float64), p.sqrt()]))
        g = torch.cat([before[1][unit][None], before[0][unit].flatten()])
        expected = 0.3 * (root @ root.T @ g)
        found = torch.cat([layer.bias.grad[unit][None], layer.weight.grad[unit].flatten()])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_without_a_mean_weight_and_bias_are_not_coupled(draw: Callable[..., Tensor]) -> None:
    layer = with_gradients("linear", draw)
    _, precision = moments(layer, draw)
    before = [p.grad.clone() for p in layer.parameters()]
    precondition_gradients(layer, None, precision, 0.5)
    assert torch.equal(layer.bias.grad, 0.5 * before[1])
    torch.testing.assert_close(layer.weight.grad, 0.5 * before[0] * precision, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(
    dtype: torch.dtype, draw: Callable[..., Tensor]
) -> None:
    layer = with_gradients("conv", draw, dtype)
    mean, precision = (m.float() for m in moments(layer, draw))
    wide = LAYERS["conv"]()
    for narrow, parameter in zip(layer.parameters(), wide.parameters(), strict=True):
        parameter.grad = narrow.grad.float()
    for each in (layer, wide):
        precondition_gradients(each, mean, precision, 0.5)
    for narrow, parameter in zip(layer.parameters(), wide.parameters(), strict=True):
        assert torch.equal(narrow.grad, parameter.grad.to(dtype))


def test_a_layer_whose_weight_has_no_gradient_is_left_alone_and_one_whose_bias_has_none_is_refused() -> None:
    layer = nn.Linear(2, 2)
    assert not has_gradients("a", layer, what="BNP", bias=True)
    layer.weight.grad = torch.zeros(2, 2)
    assert has_gradients("a", layer, what="BNP", bias=False)
    with pytest.raises(ValueError, match=r"BNP needs the gradients of weight and bias together; layer 'a'"):
        has_gradients("a", layer, what="BNP", bias=True)
    layer.bias.grad = torch.zeros(2)
    assert has_gradients("a", layer, what="BNP", bias=True)


def test_a_bias_that_the_optimizer_does_not_step_is_none() -> None:
    layer = nn.Linear(2, 2)
    check_biases({"a": layer}, torch.optim.SGD(layer.parameters(), lr=0.1), what="BNP")
    with pytest.raises(ValueError, match=r"BNP needs a bias, stepped by the same optimizer.* got none in 'a'"):
        check_biases({"a": layer}, torch.optim.SGD([layer.weight], lr=0.1), what="BNP")


def test_a_state_of_other_layers_is_refused() -> None:
    layers = {"a": nn.Conv1d(4, 2, 1, groups=2)}
    check_channels({"a": torch.zeros(2, 2)}, layers, what="BNP")
    with pytest.raises(ValueError, match=r"BNP needs a state of its own layers; got layer 'b'; it has \['a'\]"):
        check_channels({"b": torch.zeros(2, 2)}, layers, what="BNP")
    with pytest.raises(ValueError, match=r"a state of \(2, 2\) \(groups, channels\) for layer 'a'; got \(1, 4\)"):
        check_channels({"a": torch.zeros(1, 4)}, layers, what="BNP")
