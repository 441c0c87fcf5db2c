"""A chain of numbers has it in closed form; a network by autograd with the parameters put in by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.covariate_shift import CovariateShift
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(12, 3, seed=7), torch.arange(12) % 3


def read(model, update, *, loss=functional.cross_entropy, data=(X, Y), mode="train", **settings):
    risk = EmpiricalRisk(model, loss, data, mode=mode)
    step = Step(3, risk, Activations(risk), Previous(), None, torch.Generator(), update=update)
    return {(reading.layer, reading.name): reading for reading in CovariateShift(**settings)(step)}


def network() -> nn.Module:
    blocks = [
        nn.Linear(3, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 4),
        nn.LayerNorm(4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ]
    model = nn.Sequential(*blocks).double()
    for seed, p in enumerate(model.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return model


def moved(model: nn.Module, scale: float = 0.1) -> dict[str, Tensor]:
    """Steps the model in place, and returns by how much."""
    update = {name: scale * normal(*p.shape, seed=50 + i) for i, (name, p) in enumerate(model.named_parameters())}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += update[name]
    return update


def test_of_a_product_of_numbers_the_gradient_is_that_of_the_others_product():
    """L = c b a mean(x): dL/dc = a b mean(x), dL/db = a c mean(x); the layers below move from a to a'."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3))).double()
    old, new = (2.0, 3.0, 5.0), (2.5, -1.0, 7.0)
    with torch.no_grad():
        for layer, value in zip(model, new, strict=True):
            layer.weight.fill_(value)
    update = {f"{i}.weight": torch.full((1, 1), b - a) for i, (a, b) in enumerate(zip(old, new, strict=True))}
    x = normal(6, 1) + 1
    found = read(model, update, loss=lambda outputs, y: outputs.mean(), data=(x, x))
    mean = float(x.mean())
    assert found["1", "shift"].value == pytest.approx(abs((2.5 - 2) * 5 * mean), rel=1e-13)
    assert found["1", "cosine"].value == pytest.approx(1)
    assert found["1", "gradient_norm"].value == pytest.approx(abs(10 * mean), rel=1e-13)
    assert found["2", "shift"].value == pytest.approx(abs((-2.5 - 6) * mean), rel=1e-13)
    assert found["2", "cosine"].value == pytest.approx(-1)
    assert found["", "layers"].value == 2, "nothing below the first one moves"
    assert ("0", "shift") not in found
    assert found["2", "shift"].n == 6


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_layers_below_and_their_norms_move_first_and_the_rest_stays(mode):
    before = network()
    model = copy.deepcopy(before)
    update = moved(model)
    state = copy.deepcopy(model.state_dict())
    found = read(model, update, mode=mode)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def gradient(network, layer):
        loss = functional.cross_entropy(network.train()(X), Y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network[layer].parameters()))])

    for layer, below in ((3, (0, 1)), (6, (0, 1, 3, 4))):
        mixed = copy.deepcopy(before)
        for i in below:
            mixed[i].load_state_dict(model[i].state_dict())
        g, g_moved = gradient(copy.deepcopy(before), layer), gradient(mixed, layer)
        reading = found[str(layer), "shift"].value
        assert reading == pytest.approx(float((g - g_moved).norm()), rel=1e-9)
        assert reading > 0.01
        cosine = float(g @ g_moved / (g.norm() * g_moved.norm()))
        assert found[str(layer), "cosine"].value == pytest.approx(cosine, rel=1e-10)
        assert found[str(layer), "gradient_norm"].value == pytest.approx(float(g.norm()), rel=1e-10)


def test_a_step_of_nothing_shifts_nothing():
    model = network()
    found = read(model, {name: torch.zeros_like(p) for name, p in model.named_parameters()})
    for layer in ("3", "6"):
        assert found[layer, "shift"].value == 0
        assert found[layer, "cosine"].value == pytest.approx(1)


def test_layers_are_in_the_order_of_their_calls_and_a_reparametrized_weight_is_the_layer_s_own():
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    model = Reversed().double()
    found = read(model, moved(model))
    assert {layer for layer, _ in found} == {"", "last"}
    # The scale g of weight norm moves with the direction: with it frozen the shift is another one.
    only = {name: u for name, u in moved(model).items() if not name.endswith("original0")}
    assert read(model, only)["last", "shift"].value != found["last", "shift"].value


def test_at_most_so_many_layers_are_taken_evenly_and_up_to_the_last():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9))).double()
    update = moved(model)
    layers = {layer for layer, _ in read(model, update)} - {""}
    assert layers == {"2", "4", "6", "8"}
    assert {layer for layer, _ in read(model, update, largest=1)} - {""} == {"8"}
    assert {layer for layer, _ in read(model, update, layers=["1", "5"])} - {""} == {"1", "5"}
    assert read(model, update, largest=99)["", "layers"].value == 8


def test_before_the_first_step_and_without_layers_above_each_other_there_is_nothing_to_shift():
    model = network()
    assert {key: r.value for key, r in read(model, None).items()} == {("", "layers"): 0}
    one = nn.Sequential(nn.Linear(3, 3)).double()
    assert {key: r.value for key, r in read(one, moved(one)).items()} == {("", "layers"): 0}


def test_the_angle_of_a_gradient_that_is_zero_is_not_known():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    update = {"0.weight": torch.ones(1, 1), "1.weight": torch.zeros(1, 1)}  # from 0: nothing reaches the second
    x = torch.ones(4, 1, dtype=torch.float64)
    found = read(model, update, loss=lambda outputs, y: outputs.mean(), data=(x, x))
    assert found["1", "gradient_norm"].value == 0
    assert found["1", "shift"].value == pytest.approx(1)
    assert math.isnan(found["1", "cosine"].value)


def test_what_cannot_be_measured_is_refused():
    model = network()
    with pytest.raises(ValueError, match="at least 1 layer; got largest=0"):
        read(model, moved(model), largest=0)
    with pytest.raises(ValueError, match="matches none of"):
        read(model, moved(model), layers="nothing")
