"""The contributions add up to autograd's gradient, and signs chosen by hand cancel as they must."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.cancellation import Cancellation, contributions
from normlens.probes.layer_passes import layer_passes
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

SUMS = ("absolute", "by_sample", "by_place", "total")
RATIOS = ("cancellation", "within_samples", "across_samples")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signed(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient by the outputs is the targets."""
    return (outputs * targets).sum()


def read(model, data, *, loss=signed, seed=0, **settings):
    risk = EmpiricalRisk(model, loss, data, mode="train")
    generator = torch.Generator().manual_seed(seed)
    step = Step(0, risk, Activations(risk), Previous(), None, generator)
    return {(reading.layer, reading.name): reading for reading in Cancellation(**settings)(step)}


@pytest.fixture(autouse=True)
def seeded():
    """Weights of a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2), nn.Conv2d(4, 6, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"), nn.Conv2d(4, 2, 3, padding="valid", stride=3),
        nn.Conv1d(4, 3, 3, padding=2, stride=2, padding_mode="reflect"), nn.Conv3d(4, 2, 2, padding=(1, 0, 1)),
        nn.Linear(7, 3),
    ],
    ids=repr,
)  # fmt: skip
def test_the_contributions_to_every_weight_add_up_to_its_gradient(layer):
    sizes = {nn.Conv1d: (4, 9), nn.Conv3d: (4, 3, 4, 5), nn.Linear: (5, 7)}.get(type(layer), (4, 8, 7))
    model, x = nn.Sequential(layer).double(), normal(3, *sizes)
    y = normal(*model(x).shape, seed=1)
    (gradient,) = torch.autograd.grad(signed(model(x), y), layer.weight)
    (call,) = layer_passes(EmpiricalRisk(model, signed, (x, y)), lambda module: module is layer)
    for index in itertools.product(*map(range, gradient.shape)):
        parts = contributions(call, index)
        assert len(parts) == 3
        assert float(parts.sum()) == pytest.approx(float(gradient[index]), rel=1e-10, abs=1e-10)


def test_signs_chosen_by_hand_cancel_within_samples_and_across_them_as_they_must():
    """A 1 x 1 convolution of ones: d is the target. Rows are samples, columns places."""
    cases = {
        ((1, 1, 1), (1, 1, 1)): (6, 6, 6, 6),
        ((1, -1, 1), (1, -1, 1)): (6, 2, 6, 2),
        ((1, 1, 1), (-1, -1, -1)): (6, 6, 0, 0),
        ((1, -1, 0), (2, 2, -1)): (7, 3, 5, 3),
    }
    model, ones = nn.Sequential(nn.Conv1d(1, 1, 1)).double(), torch.ones(2, 1, 3, dtype=torch.float64)
    for signs, expected in cases.items():
        found = read(model, (ones, torch.tensor(signs, dtype=torch.float64)[:, None]))
        assert tuple(found["0", name].value for name in SUMS) == expected
        absolute, by_sample, by_place, total = expected
        ratios = [absolute / part if part else math.inf for part in (total, by_sample, by_place)]
        assert [found["0", name].value for name in RATIOS] == ratios
        assert found["0", "absolute"].error == 0
        assert found["0", "absolute"].n == 2


def test_the_readings_are_means_over_all_weights_by_hand_and_keep_the_triangle_inequalities():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double()
    x, y = normal(6, 2, 4, 4), torch.arange(6) % 4
    found = read(model, (x, y), loss=functional.cross_entropy, weights=1000)
    h = model[0](x)
    (delta,) = torch.autograd.grad(functional.cross_entropy(model[1:](h), y), h)
    patches = functional.unfold(x, 2)  # (N, 8, 9)
    d = delta.flatten(2)[:, :, None] * patches[:, None]  # (N, 3, 8, 9)
    by_hand = {"absolute": d.abs().sum((0, 3)), "by_sample": d.sum(3).abs().sum(0), "by_place": d.sum(0).abs().sum(2)}
    by_hand["total"] = d.sum((0, 3)).abs()
    for name, sums in by_hand.items():
        assert found["0", name].value == pytest.approx(float(sums.mean()), rel=1e-12)
    for layer in ("0", "3"):
        value = {name: r.value for (of, name), r in found.items() if of == layer}
        assert value["absolute"] >= value.get("by_sample", math.inf) or layer == "3"
        assert value["cancellation"] >= value.get("within_samples", 1) >= 1
        assert value["cancellation"] >= value.get("across_samples", 1) >= 1
    assert ("3", "by_place") not in found, "a linear layer sums over samples alone"
    assert found["3", "cancellation"].value > 1


def test_drawn_weights_estimate_the_mean_over_all_within_their_error():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 16, 4)).double()
    data = normal(6, 8, 6, 6), torch.arange(6) % 4
    whole = read(model, data, loss=functional.cross_entropy, weights=100_000)
    draws = [read(model, data, loss=functional.cross_entropy, weights=50, seed=seed) for seed in range(20)]
    for name in ("absolute", "total", "cancellation"):
        scores = [(one["0", name].value - whole["0", name].value) / one["0", name].error for one in draws]
        assert abs(sum(scores)) / math.sqrt(20) < 3.5  # of 20 independent scores of unit variance
        assert 0.5 < sum(score**2 for score in scores) / 20 < 2.2  # chi squared of 20: 0.37 to 2.0 in 99 of 100
    assert draws[0]["0", "total"].value != draws[1]["0", "total"].value


def test_a_sequence_has_places_and_a_layer_that_is_called_twice_sums_over_its_calls():
    linear = nn.Sequential(nn.Linear(2, 3)).double()
    found = read(linear, (normal(4, 5, 2), normal(4, 5, 3, seed=1)))
    d = normal(4, 5, 3, seed=1)[..., :, None] * normal(4, 5, 2)[..., None, :]
    assert found["0", "by_place"].value == pytest.approx(float(d.sum(0).abs().sum(0).mean()), rel=1e-12)
    assert found["0", "by_sample"].value == pytest.approx(float(d.sum(1).abs().sum(0).mean()), rel=1e-12)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).tanh())

    model, x, y = Twice().double(), normal(4, 2), normal(4, 2, seed=1)
    found = read(model, (x, y))
    (gradient,) = torch.autograd.grad(signed(model(x), y), model.layer.weight)
    assert {layer for layer, _ in found} == {"layer"}
    assert found["layer", "total"].value == pytest.approx(float(gradient.abs().mean()), rel=1e-12)


def test_random_signs_of_one_size_make_the_square_root_of_pi_n_over_2():
    n = 4096
    model = nn.Sequential(nn.Linear(1, 400, bias=False)).double()
    signs = torch.randint(0, 2, (n, 400), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    found = read(model, (torch.ones(n, 1).double(), signs), weights=400, samples=n)
    # The mean of 400 magnitudes of a normal is off by sqrt(pi / 2 - 1) / 20 of itself.
    assert found["0", "cancellation"].value == pytest.approx(math.sqrt(math.pi * n / 2), rel=3.5 * 0.756 / 20)


def test_a_layer_that_gets_no_gradient_has_no_ratio_and_a_model_without_layers_none_to_count():
    model = nn.Sequential(nn.Linear(2, 2)).double()
    found = read(model, (normal(4, 2), torch.zeros(4, 2).double()))
    assert found["0", "absolute"].value == 0
    assert math.isnan(found["0", "cancellation"].value)
    assert {k: r.value for k, r in read(nn.BatchNorm1d(2).double(), (normal(4, 2), normal(4, 2))).items()} == {
        ("", "layers"): 0
    }


def test_too_few_weights_are_refused():
    with pytest.raises(ValueError, match="at least 2 weights of a layer; got 1"):
        read(nn.Linear(2, 2), (normal(4, 2), normal(4, 2)), weights=1)
