"""Entropies with a closed form: of two-valued dropout by enumeration, of deterministic networks by the softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from normlens.nn.weighted import NSMLinear
from normlens.probes.predictive_entropy import PredictiveEntropy
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model, x, *, mode="eval", seed=0, **settings):
    risk = EmpiricalRisk(model, functional.cross_entropy, (x, torch.zeros(len(x), dtype=torch.long)), mode=mode)
    generator = torch.Generator().manual_seed(seed)
    step = Step(0, risk, Activations(risk), Previous(), None, generator)
    return {reading.name: reading for reading in PredictiveEntropy(**settings)(step)}


def test_a_deterministic_network_has_the_entropy_of_its_softmax_and_no_information_about_noise():
    model, x = nn.Linear(4, 3).double(), normal(50, 4)
    found = read(model, x)
    expected = stats.entropy(torch.softmax(model(x), 1).detach().numpy(), axis=1)
    assert found["entropy"].value == pytest.approx(expected.mean(), rel=1e-12)
    assert found["entropy"].error == pytest.approx(expected.std(ddof=1) / math.sqrt(50), rel=1e-10)
    assert (found["entropy"].n, found["entropy"].units) == (50, "nats")
    assert found["mutual_information"].value == 0
    assert found["draws"].value == 1
    assert found["largest"].value == math.log(3)


class Coin(nn.Module):
    """Logits (a, 0) where dropout keeps, (0, 0) where it drops: probability sigmoid(a) or 1/2."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.drop(torch.ones_like(x)) > 0
        return torch.cat([x * kept, 0 * x], 1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dropout_has_the_entropies_of_its_two_values(mode):
    """4000 samples of one logit, 40 passes: H[pbar] and the mean of H[p] by enumeration of binomial counts."""
    a, rate, draws, n = 2.0, 0.3, 40, 4000
    found = read(Coin(rate), torch.full((n, 1), a, dtype=torch.float64), mode=mode, draws=draws, samples=n)
    p = np.array([0.5, 1 / (1 + math.exp(-a))])
    entropies = np.array([stats.entropy([q, 1 - q]) for q in p])
    kept = np.arange(draws + 1)
    weight = stats.binom.pmf(kept, draws, 1 - rate)
    means = p[0] + (p[1] - p[0]) * kept / draws
    total = float(weight @ [stats.entropy([q, 1 - q]) for q in means])
    expected = rate * entropies[0] + (1 - rate) * entropies[1]
    assert found["entropy"].value == pytest.approx(total, abs=5 * found["entropy"].error)
    assert found["mutual_information"].value == pytest.approx(total - expected, abs=5 * found["entropy"].error)
    assert found["entropy"].error < 1e-3
    assert found["draws"].value == draws


def test_dropout_can_be_left_as_the_mode_has_it():
    x = torch.full((20, 1), 2.0, dtype=torch.float64)
    assert read(Coin(0.3), x, dropout=False)["mutual_information"].value == 0
    assert read(Coin(0.3), x, dropout=False, mode="train")["mutual_information"].value > 0


MODELS = {
    "dropout": lambda: nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    "stochastic synapses": lambda: nn.Sequential(
        NSMLinear(12, 16, generator=torch.Generator().manual_seed(0)), nn.Linear(16, 3)
    ),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True), nn.Flatten(),
        nn.Linear(12, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_random_draws_by_the_step_s_generator_in_eval_mode_too(name):
    model, x = MODELS[name]().double(), normal(30, 12).sign()
    first, again, other = (read(model, x, seed=seed) for seed in (0, 0, 1))
    assert first["mutual_information"].value > 1e-3
    assert first["draws"].value == 20
    assert {k: r.value for k, r in first.items()} == {k: r.value for k, r in again.items()}
    assert first["entropy"].value != other["entropy"].value
    assert not any(module.training for module in model.eval().modules())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(-1, 3, 4))[0][:, -1])


def test_dropout_within_recurrent_layers_draws_too():
    assert read(Recurrent().double(), normal(30, 12))["mutual_information"].value > 1e-4


def test_classes_are_dimension_one_and_positions_are_averaged():
    model, x = nn.Conv1d(2, 3, 1).double(), normal(10, 2, 5)
    found = read(model, x)
    per_position = stats.entropy(torch.softmax(model(x), 1).detach().numpy(), axis=1)
    assert per_position.shape == (10, 5)
    assert found["entropy"].value == pytest.approx(per_position.mean(), rel=1e-12)
    assert found["entropy"].error == pytest.approx(per_position.mean(1).std(ddof=1) / math.sqrt(10), rel=1e-9)


def test_only_as_many_samples_are_used_as_asked_for():
    model, x = nn.Linear(4, 3).double(), normal(50, 4)
    assert read(model, x, samples=7)["entropy"].value == read(model, x[:7])["entropy"].value


def test_it_says_beforehand_that_random_networks_cost_more():
    def cost(model):
        risk = EmpiricalRisk(model, functional.cross_entropy, (normal(4, 12), torch.zeros(4, dtype=torch.long)))
        step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
        return PredictiveEntropy().cost(step)

    assert cost(MODELS["dropout"]()) == cost(MODELS["stochastic synapses"]()) == pytest.approx(0.34 * 20)
    assert cost(nn.Linear(12, 3)) == pytest.approx(0.68)


def test_a_single_draw_is_refused():
    with pytest.raises(ValueError, match="needs draws of at least 2; got 1; a single pass cannot tell"):
        PredictiveEntropy(draws=1)
