"""The shift is that of variances by hand, and the prediction is the law of total variance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.nn import BatchNorm, GroupNorm, IndependentComponent
from normlens.probes.variance_shift import VarianceShift
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Reading, Step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def readings(model: nn.Module, x: Tensor, mode: str = "eval", **settings: Any) -> dict[tuple[str, str], Reading]:
    risk = EmpiricalRisk(model.double(), lambda outputs, targets: outputs.mean(), (x, x), mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator().manual_seed(7))
    return {(r.layer, r.name): r for r in VarianceShift(samples=len(x), **settings)(step)}


def read(model: nn.Module, x: Tensor, mode: str = "eval", **settings: Any) -> dict[tuple[str, str], Any]:
    return {key: reading.value for key, reading in readings(model, x, mode, **settings).items()}


def linear(inputs: int, outputs: int, seed: int = 1) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).double()
    layer.weight.data.copy_(normal(outputs, inputs, seed=seed) / math.sqrt(inputs))
    return layer


def test_behind_dropout_of_independent_centered_inputs_the_variance_is_1_over_keep_in_training():
    keep, n = 0.8, 4000
    model = nn.Sequential(nn.Dropout(1 - keep), linear(30, 20), nn.BatchNorm1d(20))
    found = readings(model, normal(n, 30))
    shift = found["2", "shift"]
    assert shift.n == n
    assert shift.value == pytest.approx(1 / keep, abs=4 * shift.error)
    # Gates and inputs add their fourth moments: 20 channels of 4000 samples know the mean logarithm to half a percent.
    assert 0.001 < shift.error < 0.006
    assert found["2", "shift_predicted"].value == pytest.approx(1 / keep, rel=0.02)


def test_the_standard_error_is_the_spread_of_the_shift_over_samples_of_its_own():
    model = nn.Sequential(nn.Dropout(0.3), linear(12, 6), nn.ReLU(), nn.BatchNorm1d(6))
    found = [readings(model, normal(200, 12, seed=seed))["3", "shift"] for seed in range(100)]
    # The gates of all are drawn alike, the samples are not; 100 values know their spread to 7 percent.
    spread = np.std([reading.value for reading in found])
    assert np.mean([reading.error for reading in found]) == pytest.approx(spread, rel=0.25)


def test_the_ratios_are_those_of_the_variances_by_hand():
    model = nn.Sequential(linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 3), nn.BatchNorm1d(3)).double()
    x = normal(50, 5)
    for norm, seed in ((model[1], 3), (model[4], 4)):
        norm.running_mean.copy_(normal(norm.num_features, seed=seed))
        norm.running_var.copy_(normal(norm.num_features, seed=seed).square() + 0.5)
    running = [model[i].running_var.clone() for i in (1, 4)]
    found = read(model, x, "train")
    evaluated = model.eval()[:4](x).var(0, correction=0)
    trained = model.train()[:4](x).var(0, correction=0).detach()
    ratio = (trained / evaluated).detach()
    np.testing.assert_allclose(found["4", "channel_shift"], ratio, rtol=1e-12)
    assert found["4", "shift"] == pytest.approx(ratio.log().mean().exp().item(), rel=1e-12)
    for name, variance in (("train_to_running", trained), ("eval_to_running", evaluated)):
        expected = (variance / running[1]).log().mean().exp().item()
        assert found["4", name] == pytest.approx(expected, rel=1e-12)
    assert found["1", "shift"] == pytest.approx(1, rel=1e-12)  # nothing upstream knows the mode


def test_without_dropout_and_with_fitting_statistics_nothing_shifts():
    x = normal(200, 5)
    model = nn.Sequential(linear(5, 4), BatchNorm(4, momentum=1.0), nn.ReLU(), linear(4, 3), BatchNorm(3, momentum=1.0))
    model.double().train()(x)
    found = read(model, x)
    for layer in ("1", "4"):
        for name in ("shift", "train_to_running", "eval_to_running"):
            # The running variances are unbiased, 200 / 199 times ours, the first one within the second one's input.
            assert found[layer, name] == pytest.approx(1, rel=2 / 199)
        assert found[layer, "dropouts_before"] == 0


def test_running_statistics_that_were_taken_with_dropout_are_too_large_by_1_over_keep_in_use():
    keep, x = 0.7, normal(4000, 30)
    model = nn.Sequential(nn.Dropout(1 - keep), linear(30, 20), BatchNorm(20, momentum=1.0)).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)  # not that of x: the masks would know it
        model.train()(x)
    found = readings(model, x)
    for name, expected in (("eval_to_running", keep), ("train_to_running", 1.0)):
        # Those masks are other ones: their part of the variance is known to about the error that is read, too.
        assert found["2", name].value == pytest.approx(expected, abs=6 * found["2", name].error)


LAYERS = {
    "linear": (lambda: linear(6, 4), nn.Dropout(0.3), (6,)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Dropout(0.3), (3, 6, 6)),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), nn.Dropout(0.3), (4, 5, 5)),
    "a gate for a channel": (lambda: nn.Conv2d(3, 4, 3, padding=1), nn.Dropout2d(0.3), (3, 5, 5)),
    "one dimension": (lambda: nn.Conv1d(3, 4, 2), nn.Dropout1d(0.3), (3, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_prediction_is_the_mean_over_masks_for_inputs_of_any_distribution(name):
    make, dropout, shape = LAYERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = make().double()
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[1 + len(shape)](4)
    x = normal(20, *shape).abs() + 0.3  # neither centered nor independent of anything
    found = readings(nn.Sequential(dropout, layer, norm), x)["2", "shift_predicted"]
    repeats = 1500
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        plain = layer(x)
        pooled = (0, *range(2, plain.ndim))
        outputs = layer(dropout.train()(x.repeat(repeats, *[1] * len(shape)))).detach()
    ratio = outputs.var(pooled) / plain.var(pooled, correction=0)
    # 30 000 samples or more of a heavier tail than a normal's: each of the four variances is known to 2 percent.
    assert found.value == pytest.approx(ratio.log().mean().exp().item(), rel=0.02)


def test_the_prediction_holds_for_the_layer_behind_an_independent_component_layer_and_through_a_flattening():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = IndependentComponent(3, keep_prob=0.6)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(48, 10), nn.BatchNorm1d(10)).double()
    layer.bias.data.fill_(0.5)
    x = 3 * normal(3000, 3, 4, 4) + 5
    layer.running_mean.copy_(x.mean((0, 2, 3)))
    layer.running_var.copy_(x.var((0, 2, 3)))  # so that both modes standardize alike
    found = readings(model, x)
    # E x^2 = 1 + 0.25 in front of the gates, and the variance without them is that of a sum of independent values.
    predicted = 1 + 0.4 / 0.6 * 1.25
    assert found["3", "shift_predicted"].value == pytest.approx(predicted, rel=0.02)
    assert found["3", "shift"].value == pytest.approx(predicted, abs=4 * found["3", "shift"].error)
    assert found["3", "dropouts_before"].value == 1
    assert ("0", "shift_predicted") not in found  # nothing but the data stand in front of it


def test_where_the_law_is_not_known_nothing_is_predicted():
    x = normal(40, 4, 5, 5)
    circular = nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")
    grouped, nonlinear = nn.Conv2d(4, 4, 3, groups=2), nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU())
    for dropout, layer in ((nn.Dropout(), circular), (nn.Dropout2d(), grouped), (nn.Dropout(), nonlinear)):
        norm = nn.BatchNorm2d(4 if layer is grouped else 3)
        found = read(nn.Sequential(dropout, layer, norm), x)
        assert ("2", "shift") in found
        assert ("2", "shift_predicted") not in found


def test_only_layers_that_keep_a_variance_for_each_channel_are_measured_and_counted():
    x = normal(30, 4, 3, 3)
    kept, none = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(kept, GroupNorm(4, groups=2), none, nn.Dropout(0.1), nn.Dropout(0.0), nn.BatchNorm2d(4))
    found = read(model, x)
    assert {layer for layer, _ in found} == {"", "0", "5"}
    assert (found["", "layers"], found["", "dropouts"]) == (2, 1)
    assert (found["0", "dropouts_before"], found["5", "dropouts_before"]) == (0, 1)
    assert {layer for layer, _ in read(model, x, layers="5")} == {"", "5"}
    assert read(nn.Sequential(nn.Dropout(0.1), nn.Flatten()), x) == {("", "layers"): 0}


def test_constant_channels_are_left_out_of_the_means():
    model = nn.Sequential(nn.Dropout(0.5), linear(5, 3), nn.BatchNorm1d(3))
    model[1].weight.data[1] = 0
    found = read(model, normal(500, 5))
    assert math.isnan(found["2", "channel_shift"][1])
    others = found["2", "channel_shift"][[0, 2]]
    assert found["2", "shift"] == pytest.approx(math.exp(np.log(others).mean()), rel=1e-12)


def test_the_mode_of_the_training_changes_nothing():
    model, x = (
        nn.Sequential(linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), linear(3, 3), nn.BatchNorm1d(3)),
        normal(40, 5),
    )
    one, other = (read(model, x, mode) for mode in ("train", "eval"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])


def test_what_is_not_finite_is_refused():
    model = nn.Sequential(linear(5, 3), nn.BatchNorm1d(3))
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="parameters must be finite"):
        read(model, normal(40, 5))
