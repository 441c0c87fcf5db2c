"""StatDiff is that of a normalization's output before its last affine map, whatever stands in that map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.nn.batch_channel_norm import BatchChannelNorm
from normlens.probes.normalized_features import statdiff_readings
from normlens.run.capture import Activation


def values(seed: int = 0) -> Tensor:
    x = torch.randn(32, 8, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2 * x + torch.arange(8.0, dtype=torch.float64)[:, None]


def read(module: nn.Module, x: Tensor) -> tuple[float, float]:
    module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters(), start=1):
            parameter.uniform_(number, number + 1, generator=torch.Generator().manual_seed(number))
    activation = Activation(module, x, module(x).detach(), 1, 1)
    found = {reading.name: float(reading.value) for reading in statdiff_readings("norm", activation)}
    return found["statdiff_mean"], found["statdiff_std"]


def test_of_batch_norm_only_eps_is_left():
    x = values()
    mean, std = read(nn.BatchNorm1d(8), x)
    var = x.var((0, 2), correction=0)
    assert mean == pytest.approx(0, abs=1e-14)
    assert std == pytest.approx((1 - (var / (var + 1e-5)).sqrt()).mean().item(), rel=1e-6)


def test_of_group_norm_it_is_that_of_the_formula_without_affine_map():
    x = values()
    plain = nn.functional.group_norm(x, 2).transpose(0, 1).flatten(1).numpy()
    expected = np.abs(plain.mean(1)).mean(), np.abs(plain.std(1) - 1).mean()
    assert read(nn.GroupNorm(2, 8), x) == pytest.approx(expected, rel=1e-12)


def test_of_batch_channel_norm_the_map_between_the_halves_stays():
    x, layer = values(), BatchChannelNorm(8)
    found = read(layer, x)
    with torch.no_grad():
        layer.channel_weight.fill_(1)
        layer.channel_bias.zero_()
        plain = layer(x).transpose(0, 1).flatten(1).numpy()
    assert found == pytest.approx((np.abs(plain.mean(1)).mean(), np.abs(plain.std(1) - 1).mean()), rel=1e-9)


def test_the_layer_s_own_state_stays_as_it_was():
    module = nn.BatchNorm1d(8).double()
    activation = Activation(module, values(), module(values()).detach(), 1, 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    list(statdiff_readings("norm", activation))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
