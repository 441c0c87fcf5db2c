"""One position of each sample is looked at, with its neighbor; correlations and levels come from what was looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from normlens.probes.gated_pairs import (
    Look,
    correlations,
    gate_entropy,
    information_before,
    level,
    shuffled_channels,
)
from normlens.probes.gates import Gate
from normlens.probes.paired_information import Variables, pair_information
from normlens.run.capture import Activation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gate_of(x: torch.Tensor, keep: float = 0.5) -> Gate:
    mask = torch.rand(x.shape, generator=generator(1)) < keep
    return Gate(Activation(nn.Dropout(1 - keep), x, x * mask / keep), keep, False)


def test_a_look_takes_one_position_of_each_sample_for_all_channels_and_the_next_one():
    n, channels, positions = 200, 3, 5
    x = torch.arange(n * channels * positions, dtype=torch.float64).reshape(n, channels, positions) + 1
    gate = gate_of(x)
    look = Look.at_random(gate, torch.tensor([2, 0]), generator())
    for channel, values in zip((2, 0), look.before[0].values, strict=True):
        place = values - 1 - np.arange(n) * channels * positions - channel * positions
        assert set(place) == set(range(positions))
        neighbor = look.before[1].values[(2, 0).index(channel)] - values + place
        np.testing.assert_array_equal(neighbor, (place + 1) % positions)
        np.testing.assert_array_equal(place, look.before[0].values[0] - 1 - np.arange(n) * 15 - 2 * positions)
    after = look.after[0].values
    np.testing.assert_array_equal(after[after != 0], 2 * look.before[0].values[after != 0])


def test_channels_that_vary_are_shuffled_by_the_seed_alone():
    x = torch.randn(20, 2, 9, generator=generator())
    x[..., [0, 4]] = 1.0
    chosen = shuffled_channels(x, 0)
    assert sorted(chosen.tolist()) == [1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(shuffled_channels(-x, 0), chosen)
    assert not torch.equal(shuffled_channels(x, 1), chosen)


def test_correlations_are_those_of_numpy_over_all_positions_and_passes():
    gates = [gate_of(torch.randn(40, 4, 3, generator=generator(seed)).double() + 1) for seed in (3, 4)]
    before, after, predicted = correlations(gates, torch.tensor([0, 1]), torch.tensor([3, 2]))
    for found, side in ((before, "before"), (after, "after")):
        joined = torch.cat([getattr(gate, side).flatten(0, 1) for gate in gates]).numpy()
        expected = np.corrcoef(joined.T)
        np.testing.assert_allclose(found, [expected[0, 3], expected[1, 2]], rtol=1e-10)
    assert (predicted.abs() < 0.5 * before.abs()).all()  # keep, and less where the mean is not zero


def test_before_the_gates_as_many_samples_are_taken_as_they_leave():
    x, y = torch.randn(2, 2, 300, generator=generator()).double()
    pair = Variables.of(x), Variables.of(x + y)
    whole = information_before(*pair, 1.0, generator(), 0)
    np.testing.assert_allclose(whole.values, pair_information(*pair, seed=0).values, rtol=1e-12)
    half = information_before(*pair, 0.4, generator(), 0)
    # Two parts of 120: the error of 240 samples, whatever the two errors are.
    assert half.errors.mean() == pytest.approx(whole.errors.mean() * math.sqrt(300 / 240), rel=0.15)


def test_the_level_is_the_95_percent_point_of_permuted_pairs():
    x = torch.randn(8, 200, generator=generator()).double()
    same = Variables.of(x)
    assert level(same, same, 5, 1.0, generator()) < 0.2 < pair_information(same, same, seed=0).values.min()
    few = Variables.of(x[:, :10])
    assert math.isnan(level(few, few, 3, 1.0, generator()))


def test_the_entropy_of_a_gate_is_that_of_a_coin():
    assert gate_entropy(0.5) == pytest.approx(math.log(2), rel=1e-12)
    assert gate_entropy(0.9) == pytest.approx(gate_entropy(0.1), rel=1e-12)
