"""Gradients by the activations against autograd by hand, and their growth against the theorems on random networks."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.nn import BatchNorm
from normlens.probes.gradient_flow import RELU_GROWTH, GradientFlow, growth_per_layer
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


@pytest.fixture(autouse=True)
def seeded():
    """Weights and data of a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def read(model, x, *, mode="train", index=0, **settings):
    risk = EmpiricalRisk(model, functional.cross_entropy, (x, torch.arange(len(x)) % 3), mode=mode)
    step = Step(index, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(reading.layer, reading.name): reading for reading in GradientFlow(**settings)(step)}


def normalized(width, depth, *between, bias=False):
    """Linear layers with a batch norm after each but the last, and what else stands between them."""
    layers = [nn.Linear(width, width, bias=bias)]
    for _ in range(depth):
        layers += [nn.BatchNorm1d(width), *(kind() for kind in between), nn.Linear(width, width, bias=bias)]
    return nn.Sequential(*layers)


def test_the_predicted_growth_is_pi_over_pi_minus_1():
    """E phi'^2 / Var phi of a rectified Gaussian, by quadrature."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    mean, square, slope = (float(torch.trapezoid(f * p, z)) for f in (z.relu(), z.relu() ** 2, (z > 0).double()))
    assert pytest.approx(slope / (square - mean**2), rel=1e-4) == RELU_GROWTH
    assert pytest.approx(1.46694, abs=1e-5) == RELU_GROWTH


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_relu_and_batch_norm_grow_by_pi_over_pi_minus_1_whatever_the_variance_of_the_weights(scale):
    """P17: width 1000, a batch of 256, to 5 %."""
    model = normalized(1000, 9, nn.ReLU)
    with torch.no_grad():
        for p in model.parameters():
            p *= scale if p.ndim > 1 else 1
    found = read(model, torch.randn(256, 1000))
    assert found["", "growth"].value == pytest.approx(math.pi / (math.pi - 1), rel=0.05)
    assert found["", "growth"].value == pytest.approx(RELU_GROWTH, abs=3.5 * found["", "growth"].error)
    assert found["", "growth"].error < 0.01
    assert found["", "predicted"].value == RELU_GROWTH
    assert (found["", "chain"].value, found["", "fitted"].value) == (1, 7)


def test_linear_layers_with_batch_norm_do_not_grow():
    found = read(normalized(1000, 9), torch.randn(256, 1000))
    assert found["", "growth"].value == pytest.approx(1, rel=0.05)
    assert found["", "predicted"].value == 1


def test_small_batches_grow_faster_than_the_limit():
    """1.6 at 16 samples."""
    found = read(normalized(1000, 9, nn.ReLU), torch.randn(16, 1000))
    assert found["", "growth"].value == pytest.approx(1.6, rel=0.05)


def test_circular_convolutions_grow_by_pi_over_pi_minus_1_too():
    layers = [nn.Conv2d(96, 96, 3, padding=1, padding_mode="circular", bias=False)]
    for _ in range(8):
        layers += [nn.BatchNorm2d(96), nn.ReLU(), copy.deepcopy(layers[0])]
    for layer in layers:
        layer.reset_parameters() if isinstance(layer, nn.Conv2d) else None
    found = read(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(32, 96, 6, 6))
    assert found["", "growth"].value == pytest.approx(RELU_GROWTH, rel=0.05)
    assert found["", "predicted"].value == RELU_GROWTH


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_energies_are_those_of_the_gradients_by_hand_and_running_statistics_stay(mode):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.Linear(4, 3))
    model, x = model.double(), torch.randn(12, 4).double()
    before = copy.deepcopy(model.state_dict())
    found = read(model, x, mode=mode)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    copied = copy.deepcopy(model).train()
    h = copied[:3](x)
    h_last = copied[3](h)
    each = functional.cross_entropy(copied[4](h_last), torch.arange(12) % 3, reduction="sum")
    for layer, values in (("3", h), ("4", h_last)):
        (g,) = torch.autograd.grad(each, values, retain_graph=True)
        squares = g.square().sum(1)
        assert found[layer, "energy"].value == pytest.approx(float(squares.mean()), rel=1e-12)
        assert found[layer, "energy"].error == pytest.approx(float(squares.std() / math.sqrt(12)), rel=1e-12)
        assert found[layer, "energy"].n == 12
    assert {layer for layer, _ in found} == {"3", "4"}, "two layers have no growth"


def test_the_growth_is_the_chord_without_the_ends_and_its_error_that_of_the_mean_step():
    growth, error, fitted = growth_per_layer([99.0, 8.0, 4.0, 1.0, 1e9])
    assert growth == pytest.approx(math.sqrt(8))
    assert fitted == 3
    # The steps ln 2 and ln 4: a standard deviation of ln 2 / sqrt 2, over the root of two.
    assert error == pytest.approx(math.sqrt(8) * math.log(2) / 2)


def chain(model, x=None, index=0):
    found = read(model, torch.randn(32, 8) if x is None else x, index=index)
    return found["", "chain"].value, found["", "predicted"].value if ("", "predicted") in found else None


def test_the_prediction_is_given_before_training_and_for_plain_batch_norm_alone():
    assert chain(normalized(8, 6, nn.ReLU)) == (1, RELU_GROWTH)
    assert chain(normalized(8, 6, nn.ReLU, nn.Identity)) == (1, RELU_GROWTH)
    assert chain(normalized(8, 6, nn.ReLU, bias=True)) == (1, RELU_GROWTH)
    assert chain(normalized(8, 6, nn.ReLU), index=1) == (1, None)
    assert chain(normalized(8, 6, nn.Tanh)) == (1, None)
    assert chain(normalized(8, 6, nn.ReLU, lambda: nn.Dropout(0.5))) == (1, None)
    assert chain(nn.Sequential(*(nn.Linear(8, 8) for _ in range(7)))) == (1, None)
    ours = nn.Sequential(
        *(part for _ in range(6) for part in (nn.Linear(8, 8), BatchNorm(8), nn.ReLU())), nn.Linear(8, 3)
    )
    assert chain(ours) == (1, RELU_GROWTH)
    with torch.no_grad():
        ours[7].bias[0] = 0.1
    assert chain(ours) == (1, None)
    with torch.no_grad():
        ours[7].bias[0] = 0.0
        ours[7].weight[0] = 2.0
    assert chain(ours) == (1, None)


def test_networks_with_skip_connections_or_functions_are_no_chain_and_have_a_growth_without_prediction():
    class Residual(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(7))
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                y = block(x)
                x = y.add_(x) if self.inplace else y + x
            return x

    class Functional(Residual):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = functional.relu(block[1](block[0](x)))
            return x

    for model in (Residual(False), Functional(False)):
        assert chain(model) == (0, None)
        assert read(model, torch.randn(32, 8))["", "growth"].value > 0
    branch = Residual(True)
    for block in branch.blocks:
        block[2] = nn.Identity()  # after which a sum in place is allowed
    assert chain(branch) == (0, None)


def test_a_tensor_that_several_layers_read_counts_once_with_the_sum_of_their_gradients():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            return self.left(h) * self.right(h)

    model, x = Heads().double(), torch.randn(6, 4).double()
    found = read(model, x)
    h = model.body(x)
    loss = functional.cross_entropy(model.left(h) * model.right(h), torch.arange(6) % 3, reduction="sum")
    (g,) = torch.autograd.grad(loss, h)
    assert set(found) == {("left", "energy")}
    assert found["left", "energy"].value == pytest.approx(float(g.square().sum() / 6), rel=1e-12)


def test_a_part_of_a_tensor_is_not_taken_for_the_whole():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.first, self.all = nn.Linear(4, 6), nn.Linear(3, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            return self.first(h[:, :3]) + self.all(h)

    assert {layer for layer, _ in read(Part(), torch.randn(6, 4))} == {"first", "all"}


def test_a_model_without_such_layers_or_parameters_has_none_to_count():
    for model in (nn.Sequential(nn.Linear(4, 3)), nn.Identity(), nn.LayerNorm(4)):
        assert {key: r.value for key, r in read(model, torch.randn(6, 4)).items()} == {("", "layers"): 0}


def test_a_frozen_network_has_gradients_by_its_activations_too():
    model = normalized(8, 6, nn.ReLU)
    free = read(model, torch.ones(4, 8).cumsum(0))
    frozen = read(model.requires_grad_(False), torch.ones(4, 8).cumsum(0))
    assert {key: r.value for key, r in free.items()} == {key: r.value for key, r in frozen.items()}
