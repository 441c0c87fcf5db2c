"""Layers that are invariant to their own gain, layers that are homogeneous, and one in between with a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.nn.weighted import NSMLinear
from normlens.probes.self_normalization import SelfNormalization
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model, x, *, mode="eval", **settings):
    risk = EmpiricalRisk(model, functional.mse_loss, (x, torch.zeros(len(x), 3, dtype=torch.float64)), mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(reading.layer, reading.name): reading.value for reading in SelfNormalization(**settings)(step)}


def head() -> nn.Module:
    return nn.Linear(6, 3).double()


def synapses() -> nn.Module:
    layer = NSMLinear(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    return layer


INVARIANT = {
    "batch norm behind": lambda: [nn.Linear(4, 6).double(), nn.BatchNorm1d(6, eps=1e-300).double()],
    "layer norm behind": lambda: [nn.Linear(4, 6).double(), nn.LayerNorm(6, eps=1e-300).double()],
    "weight norm": lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(4, 6).double())],
    "stochastic synapses": lambda: [synapses()],  # T2: w -> c w, b -> c b
}


@pytest.mark.parametrize("gain", [0.1, 6.0])
@pytest.mark.parametrize("name", INVARIANT)
def test_a_self_normalizing_layer_lets_no_gain_through(name, gain):
    found = read(nn.Sequential(*INVARIANT[name](), nn.Tanh(), head()), normal(9, 4).sign(), gain=gain)
    assert found["0", "gain_sensitivity"] < 1e3 * EPS / gain
    (last,) = [value for (layer, what), value in found.items() if what == "gain_sensitivity" and layer != "0"]
    assert last == pytest.approx(1, rel=1e-12)


def test_a_homogeneous_network_lets_every_gain_through():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    found = read(model, normal(9, 4), gain=0.25)
    assert found["0", "gain_sensitivity"] == pytest.approx(1, rel=1e-12)
    assert found["2", "gain_sensitivity"] == pytest.approx(1, rel=1e-12)


def test_a_saturating_network_lets_a_part_of_it_through():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), normal(9, 4)
    plain = model(x)
    gained = model[2](torch.tanh(1.1 * model[0](x)))
    expected = float(((gained - plain).norm() / (0.1 * plain.norm())).detach())
    assert 0.01 < expected < 0.9
    assert read(model, x)["0", "gain_sensitivity"] == pytest.approx(expected, rel=1e-12)


def test_stochastic_layers_that_draw_in_training_are_measured_at_their_mean():
    from normlens.nn.weighted import sampling

    model, x = nn.Sequential(synapses(), head()), normal(9, 4).sign()
    quiet = read(model, x)
    with sampling(model, torch.Generator().manual_seed(0)):
        assert read(model, x) == quiet


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_running_statistics_have_no_say(mode):
    model = nn.Sequential(*INVARIANT["batch norm behind"](), head())
    model[1].running_var.fill_(9)
    assert read(model, normal(9, 4), mode=mode)["0", "gain_sensitivity"] < 1e3 * EPS


def test_the_spread_is_the_coefficient_of_variation_of_the_units_deviations():
    """Units of deviation 1, 2, 3: mean 2, deviation sqrt(2/3)."""
    x = torch.cat([normal(50, 1)] * 3, 1)
    x = (x - x.mean(0)) / x.std(0, correction=0) * torch.tensor([1.0, 2.0, 3.0])
    found = read(nn.Sequential(nn.ReLU(), nn.Linear(3, 3).double()), x)
    assert found["0", "unit_spread"] == pytest.approx((2 / 3) ** 0.5 / 2, rel=1e-12)
    assert read(nn.Sequential(nn.BatchNorm1d(3, eps=1e-300).double(), nn.ReLU()), x, mode="train")[
        "1", "unit_spread"
    ] == pytest.approx(0, abs=1e-14)


def test_a_gain_that_is_none_and_a_model_without_anything_to_measure_are_refused():
    with pytest.raises(ValueError, match=r"needs a gain above 0; got 0; 0\.1 scales"):
        SelfNormalization(gain=0)
    with pytest.raises(ValueError, match=r"needs layers with weights, or nonlinearities, .* leave this probe out"):
        read(nn.Sequential(nn.LayerNorm(3).double()), normal(4, 3))
