from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from normlens.optim.weight_layers import groups_of, weight_layers


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_linear_layers_and_convolutions_are_found_by_name_and_others_are_not() -> None:
    model = nn.ModuleDict({
        "linear": nn.Linear(2, 2), "one": nn.Conv1d(2, 2, 1), "two": nn.Conv2d(2, 2, 1), "three": nn.Conv3d(2, 2, 1),
        "transposed": nn.ConvTranspose1d(2, 2, 1), "norm": nn.BatchNorm1d(2), "bilinear": nn.Bilinear(2, 2, 2),
        "reparametrized": weight_norm(nn.Linear(2, 2)), "nested": nn.Sequential(nn.ReLU(), nn.Linear(2, 2, bias=False)),
    })  # fmt: skip
    model["bias_reparametrized"] = nn.Linear(2, 2)
    parametrize.register_parametrization(model["bias_reparametrized"], "bias", nn.Identity())
    found = weight_layers(model, sgd(model), what="BNP")
    assert list(found) == ["linear", "one", "two", "three", "nested.1"]
    assert found["nested.1"] is model["nested"][1]


def test_a_model_that_is_a_layer_itself_has_the_empty_name() -> None:
    layer = nn.Linear(2, 2)
    assert weight_layers(layer, sgd(layer), what="BNP") == {"": layer}


def test_a_compiled_model_has_the_names_of_the_eager_one() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    assert weight_layers(compiled, sgd(model), what="BNP") == {"0": model[0]}


def test_layers_whose_weight_the_optimizer_does_not_step_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD([model[0].weight, model[1].bias, *model[2].parameters()], lr=0.1)
    assert list(weight_layers(model, optimizer, what="BNP")) == ["0", "2"]


def test_a_layer_that_is_used_twice_under_two_names_is_one_layer() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(weight_layers(model, sgd(model), what="BNP")) == ["0"]


def test_a_model_without_such_a_layer_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"BNP needs a torch\.nn\.Linear or convolution .*; got none"):
        weight_layers(model, sgd(model), what="BNP")


def test_tied_weights_are_refused_with_both_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(
        ValueError, match=r"PRONG needs every weight to belong to one layer; got one weight for 0 and 1"
    ):
        weight_layers(model, sgd(model), what="PRONG")


def test_the_groups_are_those_of_the_convolution_and_one_of_a_linear_layer() -> None:
    assert groups_of(nn.Linear(4, 4)) == 1
    assert groups_of(nn.Conv2d(4, 4, 1, groups=2)) == 2
