"""Gates are found where values are dropped, with what stood before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlens.nn import IndependentComponent
from normlens.probes.gates import gates_in, keep_probability, train_pass
from normlens.risk import EmpiricalRisk


def found_in(model: nn.Module, x: Tensor, seed: int = 3):
    risk = EmpiricalRisk(model, lambda outputs, targets: outputs.mean(), (x, x), mode="eval")
    activations = train_pass(risk, seed)
    return activations, dict(gates_in(activations))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_probability_to_stay_is_one_less_dropouts_and_none_where_nothing_or_all_is_dropped():
    assert keep_probability(nn.Dropout(0.25)) == 0.75
    assert keep_probability(nn.Dropout2d(0.25)) == 0.75
    assert keep_probability(IndependentComponent(3, keep_prob=0.9)) == 0.9
    for other in (nn.Dropout(0.0), nn.Dropout(1.0), nn.AlphaDropout(0.5), IndependentComponent(3, keep_prob=1.0)):
        assert keep_probability(other) is None
    assert keep_probability(nn.ReLU()) is None


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout2d(0.4), IndependentComponent(3, keep_prob=0.6)])
def test_behind_the_gates_is_what_stood_before_over_keep_or_zero(layer):
    x = normal(50, 3, 4, 4)
    model = nn.Sequential(nn.Tanh(), layer).double()
    if isinstance(layer, IndependentComponent):
        layer.weight.data.copy_(torch.tensor([1.0, -2.0, 0.5]))
        layer.bias.data.fill_(0.3)
    activations, gates = found_in(model, x)
    (gate,) = gates.values()
    assert gate.activation.output is activations["1"].output
    assert gate.before.shape == gate.after.shape == (50, 16, 3)
    kept = gate.after != 0
    torch.testing.assert_close(gate.after[kept], gate.before[kept] / 0.6)
    assert gate.shared == isinstance(layer, nn.Dropout2d)
    assert bool((kept.all(1) | ~kept.any(1)).all()) == gate.shared
    # 2400 gates of one value each, 150 where they are shared.
    assert kept.double().mean().item() == pytest.approx(0.6, abs=4 * (0.24 / (150 if gate.shared else 2400)) ** 0.5)
    if isinstance(layer, IndependentComponent):
        layer.keep_prob = 1.0
        torch.testing.assert_close(gate.before.movedim(2, 1).reshape(x.shape), layer.train()(x.tanh()))


def test_channels_are_last_behind_a_linear_layer_and_at_dimension_1_for_shared_gates():
    x = normal(10, 6, 5)
    _, gates = found_in(nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Dropout1d(0.5)).double(), x)
    assert gates["1"].before.shape == (10, 6, 4)
    assert gates["2"].before.shape == (10, 4, 6)


def test_masks_follow_from_the_seed_and_not_from_the_mode_or_the_global_state():
    model, x = nn.Sequential(nn.Dropout(0.5)), normal(20, 5)
    first = found_in(model, x)[1]["0"].after
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(found_in(model.eval(), x)[1]["0"].after, first)
    assert not torch.equal(found_in(model, x, seed=4)[1]["0"].after, first)
    assert not model.training
