"""One call reparametrizes every linear map and convolution, says which, and leaves alone what it cannot mean."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, skip_init

from normlens.nn.parametrize import apply_to_weights, centered_weight_norm, unit_norm, weight_norm


def filled(draw, kind, *sizes, **settings):
    layer = skip_init(kind, *sizes, dtype=torch.float64, **settings)
    for parameter in layer.parameters():
        parameter.data = draw(*parameter.shape)
    return layer


def build(draw):
    model = nn.Sequential()
    model.add_module("conv", filled(draw, nn.Conv2d, 3, 4, 2))
    model.add_module("norm", filled(draw, nn.GroupNorm, 2, 4))
    model.add_module("block", nn.Sequential(filled(draw, nn.Conv2d, 4, 4, 1), nn.ReLU()))
    model.add_module("up", filled(draw, nn.ConvTranspose2d, 4, 4, 2))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", filled(draw, nn.Linear, 64, 5))
    return model


def kinds(model):
    return {
        name: type(module.parametrizations.weight[0]).__name__
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
    }


def test_every_linear_map_and_convolution_gets_it_and_keeps_the_function(draw):
    model, x = build(draw), draw(2, 3, 4, 4)
    before = model(x)
    assert apply_to_weights(model, weight_norm) == ["conv", "block.0", "head"]
    assert kinds(model) == dict.fromkeys(["conv", "block.0", "head"], "WeightNorm")
    assert torch.equal(model(x), before)


def test_what_has_one_already_is_left_alone(draw):
    model = build(draw)
    unit_norm(model.head)
    assert apply_to_weights(model, weight_norm) == ["conv", "block.0"]
    assert kinds(model) == {"conv": "WeightNorm", "block.0": "WeightNorm", "head": "UnitNorm"}
    assert apply_to_weights(model, weight_norm) == []


def test_options_come_by_partial(draw):
    model = build(draw)
    apply_to_weights(model, functools.partial(unit_norm, dim=1))
    assert model.head.parametrizations.weight[0].dim == 1


def test_filters_of_one_entry_are_left_alone_with_a_warning_that_names_them(draw):
    model = nn.Sequential(filled(draw, nn.Linear, 1, 3), nn.Tanh(), filled(draw, nn.Linear, 3, 2))
    with pytest.warns(
        UserWarning, match=r"left as they are: 0: CenteredWeightNorm needs filters of 2 entries.*\(3, 1\)"
    ):
        assert apply_to_weights(model, centered_weight_norm) == ["2"]
    assert kinds(model) == {"2": "CenteredWeightNorm"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apply_to_weights(model, weight_norm) == ["0"]


def test_other_refusals_name_the_layer(draw):
    model = build(draw)
    model.head.weight.data[2] = 0
    with pytest.raises(ValueError, match="head: WeightNorm needs every filter to have a direction"):
        apply_to_weights(model, weight_norm)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_a_weight_of_two_layers_is_refused_before_anything_is_changed(draw, kind):
    model = nn.Sequential(filled(draw, nn.Linear, 4, 4), filled(draw, nn.Linear, 4, 4), filled(draw, kind, 4, 4))
    model[2].weight = model[1].weight
    with pytest.raises(ValueError, match=r"one tensor for 1.weight and 2.weight; untie them.*leave 1 as it is"):
        apply_to_weights(model, weight_norm)
    assert kinds(model) == {}


def test_one_layer_in_two_places_is_done_once(draw):
    shared = filled(draw, nn.Linear, 4, 4)
    model, x = nn.Sequential(shared, nn.Tanh(), shared), draw(2, 4)
    before = model(x)
    assert apply_to_weights(model, weight_norm) == ["0"]
    assert torch.equal(model(x), before)
