"""Threshold units begin with random directions and gains of one, know their noise, and refuse other settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.weighted.stochastic_synapse import NSMLinear


def linear(inputs, outputs, **settings):
    return NSMLinear(inputs, outputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64, **settings)


def test_weights_begin_with_rows_of_length_one_on_average_and_gains_of_one():
    layer = linear(400, 300)
    squares = layer.weight.detach().square().sum(1)
    assert squares.mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / (400 * 300)))
    assert layer.magnitude.tolist() == [1.0] * 300
    assert layer.bias.tolist() == [0.0] * 300


def test_drawing_anew_forgets_everything(draw):
    layer, fresh = linear(4, 3), linear(4, 3)
    for parameter in layer.parameters():
        parameter.data += draw(*parameter.shape)
    layer.reset_parameters(torch.Generator().manual_seed(5))
    for got, wanted in zip(layer.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("settings", "std", "mean"),
    [({"p": 0.2}, 0.4, 0.2), ({"p": 0.5}, 0.5, 0.5), ({"noise": "gaussian", "std": 0.3}, 0.3, 1.0)],
)
def test_deviation_and_offset_are_those_of_the_noise(draw, settings, std, mean):
    layer = linear(4, 3, **settings)
    layer.magnitude.data = draw(3)
    assert layer.noise_std == pytest.approx(std, abs=1e-15)
    assert_close(layer.offset, math.sqrt(2) * std * layer.magnitude - mean, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.0}, r"NSMLinear needs p between 0 and 1, both excluded; got 1.0"),
        ({"noise": "uniform"}, r"needs noise to be 'bernoulli' or 'gaussian'; got 'uniform'; choose one of them"),
        ({"sample": "pixel"}, r"needs sample to be 'synapse' or 'unit'; got 'pixel'"),
        ({"estimator": "st"}, r"needs estimator to be 'straight_through' or 'concrete'; got 'st'"),
        ({"std": 0.0}, r"needs a positive std; got 0.0; use 1.0 or 0.5"),
        ({"temperature": -1.0}, r"needs a positive temperature; got -1.0"),
    ],
)
def test_settings_outside_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        linear(3, 2, **settings)
