from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from normlens.probes.saturation import Saturation
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def read(model, x, probe=None):
    risk = EmpiricalRisk(model, lambda out, _: out.mean(), (x, torch.zeros(len(x))))
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(r.layer, r.name): r for r in (probe or Saturation())(step)}


def grid(lowest=-8.0, highest=8.0, n=4001):
    return torch.linspace(lowest, highest, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("kind", "edge"),
    [
        (nn.Tanh, math.atanh(math.sqrt(0.95))),  # 1 - tanh^2 = 0.05
        (nn.Sigmoid, math.log((1 + math.sqrt(0.95)) / (1 - math.sqrt(0.95)))),  # 4 s (1 - s) = 0.05
        (nn.Softsign, math.sqrt(20) - 1),  # (1 + |z|)^-2 = 0.05
        (nn.Hardtanh, 1.0),
        (nn.Hardsigmoid, 3.0),
    ],
)
def test_the_saturated_share_is_that_beyond_the_edge_of_closed_form(kind, edge):
    found = read(nn.Sequential(kind()), grid())
    assert found["0", "saturated"].value == pytest.approx(1 - edge / 8, abs=2 / 4001)
    assert found["0", "saturated"].n == 4001


def test_a_slope_s_energy_is_its_integral():
    found = read(nn.Sequential(nn.Tanh()), grid(-1, 1))
    t = math.tanh(1.0)
    assert found["0", "slope"].value == pytest.approx(t - t**3 / 3, abs=1e-3)  # the integral of sech^4 from 0 to 1


def test_a_hard_tanh_has_its_own_ends_and_a_relu6_counts_the_upper_one_alone():
    assert read(nn.Sequential(nn.Hardtanh(-4, 6)), grid())["0", "saturated"].value == pytest.approx(6 / 16, abs=1e-3)
    assert read(nn.Sequential(nn.ReLU6()), grid())["0", "saturated"].value == pytest.approx(2 / 16, abs=1e-3)


def test_units_count_when_most_of_their_values_are_flat():
    x = torch.stack([torch.full((100,), 9.0), torch.zeros(100), torch.cat([torch.full((94,), 9.0), torch.zeros(6)])], 1)
    found = read(nn.Sequential(nn.Tanh()), x)
    assert (found["0", "saturated_units"].value, found["0", "channels"].value) == (1, 3)
    assert read(nn.Sequential(nn.Tanh()), x, Saturation(most=0.94))["0", "saturated_units"].value == 2


def test_the_error_takes_the_sample_as_independent():
    x = torch.zeros(100, 5)
    x[:20] = 9.0  # all five units of a sample at once
    found = read(nn.Sequential(nn.Tanh()), x)["0", "saturated"]
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(math.sqrt(0.2 * 0.8 / 99))


def test_a_model_without_bounded_nonlinearities_has_none_counted():
    found = read(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(3, 2))
    assert {key: reading.value for key, reading in found.items()} == {("", "layers"): 0}


def test_activations_that_are_nan_are_not_called_healthy():
    found = read(nn.Sequential(nn.Tanh()), torch.full((4, 2), torch.nan))
    assert np.isnan(found["0", "saturated"].value)


def test_what_cannot_saturate_and_shares_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"defined for Tanh, .*; 0 is ReLU"):
        read(nn.Sequential(nn.ReLU()), grid(), Saturation(layers="0"))
    with pytest.raises(ValueError, match=r"0 < share < 1 and 0 < most <= 1; got 0 and 0\.95"):
        Saturation(share=0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    nn.init.constant_(model[0].weight, math.nan)
    with pytest.raises(ValueError, match="parameters must be finite"):
        read(model, torch.zeros(2, 1))
