"""Ratios are those of the theorems, and what is read comes from the values before and behind the gates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.information.mutual_information import gaussian_copula
from normlens.nn import IndependentComponent
from normlens.probes.mutual_information import MutualInformation
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Reading, Step

GAUSSIAN = -0.5 * math.log(1 - 0.8**2)
RELU = {1.0: 0.346418, 0.8: 0.155593}  # behind a ReLU, and a dropout that keeps as much: by quadrature


def readings(model: nn.Module, x: Tensor, y: Tensor | None = None, mode: str = "eval", **settings: Any):
    targets = torch.zeros(len(x)) if y is None else y
    risk = EmpiricalRisk(model.double(), lambda outputs, _: outputs.mean(), (x, targets), mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator().manual_seed(7))
    found: list[Reading] = list(MutualInformation(**{"samples": len(x), **settings})(step))
    return {(r.layer, r.name): r for r in found}


def alike(n: int, channels: int, correlation: float, *space: int, seed: int = 0) -> Tensor:
    """Standard normal values; any two of a sample have the same correlation."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn((n, 1, *[1] * len(space)), generator=g, dtype=torch.float64)
    own = torch.randn((n, channels, *space), generator=g, dtype=torch.float64)
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def agrees(reading: Reading, expected: float, errors: float = 4) -> bool:
    return abs(reading.value - expected) < errors * reading.error


@pytest.mark.parametrize("keep", [0.95, 0.7])
def test_behind_independent_gates_information_is_keep_squared_times_that_before(keep):
    model = nn.Sequential(nn.ReLU(), IndependentComponent(16, keep_prob=keep))
    found = readings(model, alike(1200, 16, 0.8))
    assert found["1", "zeros"].value == 0  # the standardization moves the ReLU's zeros
    assert np.abs(found["1", "before"].value - RELU[1.0]).mean() < 0.05
    assert found["1", "ratio_predicted"].value == keep**2
    assert agrees(found["1", "ratio"], keep**2)
    assert found["1", "ratio"].error < 0.03


def test_a_zero_before_the_gates_hides_them_so_that_less_is_left_behind_a_rectifier():
    found = readings(nn.Sequential(nn.ReLU(), nn.Dropout(0.2)), alike(1500, 16, 0.8))
    assert found["1", "zeros"].value == pytest.approx(0.5, abs=0.02)
    assert agrees(found["1", "ratio"], RELU[0.8] / RELU[1.0])
    assert found["1", "ratio"].value + 4 * found["1", "ratio"].error < 0.8**2
    assert np.abs(found["1", "after"].value - RELU[0.8]).mean() < 0.04


def test_neighbors_that_share_a_gate_know_more_of_each_other_and_channels_less():
    keep, x = 0.8, alike(1200, 16, 0.8, 4)
    found = readings(nn.Sequential(nn.Dropout1d(1 - keep)), x)
    assert agrees(found["0", "ratio"], keep**2)
    entropy = -keep * math.log(keep) - (1 - keep) * math.log(1 - keep)
    assert found["0", "within_ratio_predicted"].value == pytest.approx(keep + entropy / GAUSSIAN, rel=0.05)
    assert agrees(found["0", "within_ratio"], keep + entropy / GAUSSIAN)
    own = readings(nn.Sequential(nn.Dropout(1 - keep)), x)
    assert agrees(own["0", "within_ratio"], keep**2)
    assert own["0", "within_ratio_predicted"].value == keep**2


def test_the_error_of_the_ratio_is_its_spread_over_samples_of_their_own():
    model = nn.Sequential(IndependentComponent(16, keep_prob=0.8))
    found = [readings(model, alike(256, 16, 0.8, seed=s), permutations=1)["0", "ratio"] for s in range(30)]
    spread = np.std([reading.value for reading in found])  # known to 13 percent
    assert 0.75 * spread < np.mean([reading.error for reading in found]) < 1.6 * spread


def test_the_correlation_behind_the_gates_is_that_of_theorem_b():
    x = alike(4000, 2, 0.6)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T
    x = x @ torch.linalg.cholesky(torch.tensor([[1, 0.6], [0.6, 1]], dtype=torch.float64)).T + torch.tensor([1, 0.5])
    found = readings(nn.Sequential(nn.Dropout(0.2)), x, samples=4000, permutations=1)
    assert found["0", "correlation_before"].value == pytest.approx([0.6], rel=1e-9)
    assert found["0", "correlation_predicted"].value == pytest.approx([0.42762], abs=5e-6)  # 0.48 without the means
    assert found["0", "correlation_after"].value == pytest.approx([0.42762], abs=4 / math.sqrt(4000))


def test_what_a_value_tells_of_its_label_is_lost_at_the_rate_of_the_gates():
    labels = torch.arange(1200) % 2
    x = 3 * labels[:, None] + torch.rand(1200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    found = readings(nn.Sequential(nn.Dropout(0.3)), x, labels)
    assert found["0", "label_before"].value == pytest.approx(math.log(2), abs=0.01)
    assert agrees(found["0", "label_ratio"], 0.7)
    without = readings(nn.Sequential(nn.Dropout(0.3)), x)  # targets that are no classes
    assert not [name for _, name in without if name.startswith("label")]
    for nothing in (torch.arange(1200), torch.zeros(1200).long()):  # each of its own class, or all of one
        assert ("0", "label_before") not in readings(nn.Sequential(nn.Dropout(0.3)), x, nothing)


def test_the_level_of_no_dependence_is_above_19_in_20_independent_pairs():
    model = nn.Sequential(nn.Dropout(0.3))
    levels = [readings(model, alike(256, 16, 0.0, seed=seed)) for seed in range(5)]
    level = np.mean([found["0", "null"].value for found in levels])
    values = np.concatenate([readings(model, alike(256, 16, 0.0, seed=s))["0", "before"].value for s in range(20, 35)])
    assert np.mean(values < level) == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / len(values)))


def test_a_ratio_of_a_pair_is_given_where_its_denominator_is_three_times_that_level():
    x = alike(400, 24, 0.0) + torch.linspace(0.4, 2, 24) * alike(400, 1, 0.0, seed=1)  # from little to much in common
    found = {name: reading.value for (_, name), reading in readings(nn.Sequential(nn.Dropout(0.3)), x).items()}
    told = found["before"] >= 3 * found["null"]
    assert told.any()
    assert ((found["before"] >= found["null"]) & ~told).any()
    expected = np.where(told, found["after"] / found["before"], np.nan)
    np.testing.assert_array_equal(found["pair_ratio"], expected)


def test_pairs_are_disjoint_channels_that_vary_and_the_same_at_every_step():
    x = alike(100, 12, 0.5)
    x[:, [2, 7]] = 3.0
    found = readings(nn.Sequential(nn.Dropout(0.3)), x, pairs=8)
    channels = [*found["0", "first_channel"].value, *found["0", "second_channel"].value]
    assert sorted(channels) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    again = readings(nn.Sequential(nn.Dropout(0.3)), x + 1, pairs=3)
    np.testing.assert_array_equal(
        readings(nn.Sequential(nn.Dropout(0.3)), 2 * x, pairs=3)["0", "first_channel"].value,
        again["0", "first_channel"].value,
    )
    other = readings(nn.Sequential(nn.Dropout(0.3)), x, pairs=3, seed=1)
    assert [*other["0", "first_channel"].value] != [*again["0", "first_channel"].value]


def test_more_draws_average_over_masks_and_claim_no_more_samples():
    x, model = alike(300, 8, 0.8), nn.Sequential(nn.Dropout(0.4))
    one, many = (readings(model, x, draws=draws) for draws in (1, 6))
    assert many["0", "after"].n == one["0", "after"].n == 300
    # 108 samples in each of two parts: most of them are used in one draw, all in several, and none is used twice.
    shrunk = many["0", "before_error"].value.mean() / one["0", "before_error"].value.mean()
    assert math.sqrt(216 / 300) - 0.1 < shrunk < 1
    # The gates' part of the error shrinks, that of the samples does not, as it would in draws of data: 1 / sqrt(6).
    shrunk = many["0", "after_error"].value.mean() / one["0", "after_error"].value.mean()
    assert 0.45 < shrunk < 0.9
    assert many["0", "ratio"].error < one["0", "ratio"].error


def test_the_matrix_is_that_of_the_estimator_where_it_is_asked_for():
    x, model = alike(300, 5, 0.6), nn.Sequential(nn.Dropout(0.4))
    assert ("0", "matrix_before") not in readings(model, x)
    found = readings(model, x, matrix="gaussian_copula")["0", "matrix_before"]
    assert found.dims == ("channel", "other_channel")
    assert found.value[1, 3] == pytest.approx(gaussian_copula(x[:, 1], x[:, 3]).value, rel=1e-9)
    binned = readings(model, x, matrix="binned")
    assert binned["0", "matrix_after"].value.shape == (5, 5)
    assert binned["0", "matrix_after"].value[1, 3] < binned["0", "matrix_before"].value[1, 3]


def test_what_drops_nothing_has_no_place_and_a_model_without_dropout_is_counted_as_such():
    x = alike(60, 6, 0.5)
    model = nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.0), nn.AlphaDropout(0.3), nn.ReLU(), nn.Dropout(0.1))
    found = readings(model, x)
    assert found["", "layers"].value == 2
    assert {layer for layer, _ in found} == {"", "0", "4"}
    assert {layer for layer, _ in readings(model, x, layers="4")} == {"", "4"}
    nothing = readings(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), x)
    assert {key: reading.value for key, reading in nothing.items()} == {("", "layers"): 0}


def test_the_mode_of_the_training_changes_nothing():
    model, x = nn.Sequential(IndependentComponent(6), nn.Linear(6, 6), nn.Dropout(0.2)), alike(80, 6, 0.5)
    one, other = (readings(model, x, mode=mode) for mode in ("train", "eval"))
    assert one.keys() == other.keys()
    for key, reading in one.items():
        np.testing.assert_array_equal(reading.value, other[key].value)


def test_what_cannot_be_told_is_not_a_number_and_single_channels_have_no_pairs():
    few = readings(nn.Sequential(nn.Dropout(0.3)), alike(5, 4, 0.5))
    assert math.isnan(few["0", "ratio"].value)
    assert np.isnan(few["0", "before"].value).all()
    single = readings(nn.Sequential(nn.Dropout(0.3)), alike(50, 1, 0.5, 3))
    assert ("0", "ratio") not in single
    assert math.isfinite(single["0", "within_after"].value[0])
    constant = readings(nn.Sequential(nn.Dropout(0.3)), torch.ones(50, 4).double())
    assert {name for layer, name in constant if layer} == {"keep_prob", "zeros"}


def test_settings_and_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="pairs, draws and permutations of at least 1; got 0, 1 and 3"):
        MutualInformation(pairs=0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3))
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="parameters must be finite"):
        readings(model, alike(50, 4, 0.5))
    with pytest.raises(ValueError, match="activations must be finite"):
        readings(nn.Sequential(nn.Dropout(0.3)), alike(50, 4, 0.5) * math.inf)
    with pytest.raises(ValueError, match="matches none of"):
        readings(nn.Sequential(nn.Dropout(0.3)), alike(50, 4, 0.5), layers="nothing")
