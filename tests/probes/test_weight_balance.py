from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normlens.probes.weight_balance import weight_balance


def chain(*weights: list[list[float]]) -> nn.Module:
    layers: list[nn.Module] = []
    for values in weights:
        weight = torch.tensor(values, dtype=torch.float64)
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.weight = nn.Parameter(weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_two_layers_have_the_gap_and_balance_of_their_norms():
    """T2: rows (5, 1), columns (1, 2 sqrt 2); energy 35, at best 2 sum a_i b_i = 10 + 4 sqrt 2."""
    found = weight_balance(chain([[3, 4], [0, 1]], [[1, 2], [0, 2]]))
    assert found.gap == pytest.approx(1 - (10 + 4 * math.sqrt(2)) / 35, rel=1e-13)
    assert found.imbalance == pytest.approx(math.log(5), rel=1e-13)


def test_a_balanced_chain_has_neither_gap_nor_imbalance():
    found = weight_balance(chain([[1, 0], [0, 2]], [[0, 2], [1, 0]], [[2, 1]]))
    assert found.gap == pytest.approx(0, abs=1e-14)
    assert found.imbalance == pytest.approx(0, abs=1e-14)


def convolutions() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).double()
    for seed, p in enumerate(model.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return model


def energy(model: nn.Module) -> Tensor:
    return torch.stack([m.weight.square().sum() for m in model if hasattr(m, "weight")]).sum().detach()


def test_the_least_energy_does_not_depend_on_how_the_channels_are_scaled():
    """The gap of a rescaled network is that of the original, on another energy; the model is left alone."""
    plain, scaled = convolutions(), convolutions()
    d = torch.tensor([2.0, 0.5, 10.0], dtype=torch.float64)
    with torch.no_grad():
        scaled[0].weight *= d[:, None, None, None]
        scaled[3].weight /= d[:, None, None]
    before = {name: p.clone() for name, p in scaled.named_parameters()}
    least = [energy(model) * (1 - weight_balance(model).gap) for model in (plain, scaled)]
    assert float(least[1]) == pytest.approx(float(least[0]), rel=1e-9)
    assert weight_balance(scaled).gap > weight_balance(plain).gap > 0
    assert all(torch.equal(p, before[name]) for name, p in scaled.named_parameters())


def test_the_columns_of_a_linear_layer_behind_a_flattened_image_are_channels():
    model = convolutions()
    left = model[3].weight.detach().flatten(1).norm(dim=1)
    right = model[6].weight.detach().reshape(2, 4, 4).square().sum((0, 2)).sqrt()
    alone = nn.Sequential(*list(model)[3:])
    assert weight_balance(alone).imbalance == pytest.approx(float((right / left).log().abs().max()), rel=1e-12)


def test_dead_channels_are_left_out_and_what_is_no_number_stays_so():
    found = weight_balance(chain([[3, 4], [0, 0]], [[5, 2], [0, 2]]))
    assert found.imbalance == pytest.approx(0, abs=1e-14)
    assert found.gap == pytest.approx(0, abs=1e-14)
    lost = weight_balance(chain([[math.nan, 4]], [[5], [0]]))
    assert math.isnan(lost.gap)
    assert math.isnan(lost.imbalance)


def test_a_network_that_is_no_chain_is_refused():
    with pytest.raises(ValueError, match=r"needs positively homogeneous functions between weight layers .* got Tanh"):
        weight_balance(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)))
