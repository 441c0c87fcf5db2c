"""The gap of running statistics: closed forms, and its floor by simulation of training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normlens.nn import BatchNorm, BatchRenorm, MeanOnlyBatchNorm
from normlens.probes.running_gap import gap_readings
from normlens.probes.statistic_noise import Noise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(module: nn.Module, x: Tensor, batch: int = 64, batch_error: float = 0.01) -> dict[str, float]:
    noise = Noise.of(x if x.ndim == 3 else x[:, None])
    return {r.name: float(r.value) for r in gap_readings("layer", module, noise, batch, batch_error)}


def test_the_gaps_are_in_units_of_the_layer_and_of_the_log_of_the_variance():
    norm = BatchNorm(2, eps=0.5).double()
    x = normal(300, 2) * torch.tensor([1.0, 3.0]) + 2
    noise = Noise.of(x[:, None])
    scale = (noise.variance + 0.5).sqrt()
    norm.running_mean.copy_(noise.mean + torch.tensor([0.5, -1.5]) * scale)
    norm.running_var.copy_((noise.variance + 0.5) * torch.tensor([4.0, 0.25]) - 0.5)
    found = read(norm, x)
    assert found["running_mean_gap"] == pytest.approx(1.0, rel=1e-9)
    assert found["running_log_variance_gap"] == pytest.approx(math.log(4), rel=1e-9)


def test_of_the_population_s_own_statistics_the_gaps_are_their_floors():
    channels = 256  # their mean of |z| is known to 0.756/sqrt(256) = 5 %
    norm = BatchNorm(channels, momentum=0.0).double()
    for positions in (1, 4):
        found = read(norm, normal(200, positions, channels))
        floor = math.sqrt(2 / math.pi / (200 * positions))
        assert found["running_mean_gap_floor"] == pytest.approx(floor, rel=0.02)
        assert found["running_mean_gap"] == pytest.approx(floor, rel=0.2)
        assert found["running_log_variance_gap"] == pytest.approx(found["running_log_variance_gap_floor"], rel=0.2)
        assert found["running_log_variance_gap_floor"] == pytest.approx(math.sqrt(2) * floor, rel=0.05)
        assert found["running_gap_floor"] == found["running_log_variance_gap_floor"]


def test_averages_of_batches_at_constant_weights_are_off_by_the_floor_as_well():
    channels, batch = 256, 8
    norm = nn.BatchNorm1d(channels, momentum=0.3).double().train()
    for step in range(60):
        norm(normal(batch, channels, seed=step))
    found = read(norm, normal(4000, channels, seed=99), batch)
    alone = math.sqrt(2 / math.pi / 4000)
    assert found["running_mean_gap"] == pytest.approx(found["running_mean_gap_floor"], rel=0.2)
    assert found["running_mean_gap_floor"] > 5 * alone, "the average's own noise, not the probe data's, is what counts"
    assert found["initial_share"] == pytest.approx(0.7**60)
    # Of 8 values the logarithm of a variance is not yet linear in it.
    assert found["running_log_variance_gap"] == pytest.approx(found["running_log_variance_gap_floor"], rel=0.3)


def test_the_best_mix_is_that_of_inverse_squared_errors_and_the_sampling_part_is_taken_out():
    channels = 4096
    norm = BatchNorm(channels, momentum=0.0, eps=0.0).double()
    norm.running_mean.fill_(0.2)
    found = read(norm, normal(100, channels), batch_error=0.01)
    assert found["running_error"] == pytest.approx(0.04, rel=0.05), "and not 0.04 + 1/100"
    r = found["running_error"]
    assert found["best_prior_weight"] == pytest.approx(0.01 / (0.01 + r), rel=1e-12)
    q = found["best_prior_weight"]
    mixed = [(w**2) * r + (1 - w) ** 2 * 0.01 for w in (q - 0.05, q, q + 0.05)]
    assert min(mixed) == mixed[1] == pytest.approx(found["filtered_error"], rel=1e-12)


def test_a_running_mean_that_is_exact_takes_all_the_weight():
    norm = BatchNorm(2).double()
    x = normal(50, 2)
    norm.running_mean.copy_(x.mean(0))
    found = read(norm, x)
    assert (found["running_error"], found["filtered_error"], found["best_prior_weight"]) == (0, 0, 1)
    assert math.isnan(read(norm, x, batch_error=0.0)["best_prior_weight"])


def test_what_a_layer_keeps_is_what_is_compared():
    x = normal(50, 2)
    assert read(BatchNorm(2, track_running_stats=False), x) == {}
    mean_only = read(MeanOnlyBatchNorm(2), x)
    assert "running_mean_gap" in mean_only
    assert "running_log_variance_gap" not in mean_only
    assert mean_only["running_gap_floor"] == mean_only["running_mean_gap_floor"]
    renorm = BatchRenorm(2).double()
    noise = Noise.of(x[:, None])
    renorm.running_std.copy_((noise.variance + renorm.eps).sqrt())
    assert read(renorm, x)["running_log_variance_gap"] == pytest.approx(0, abs=1e-12)


def test_a_cumulative_average_of_many_batches_adds_no_noise_and_none_seen_are_all_initial():
    norm = nn.BatchNorm1d(8, momentum=None).double()
    x = normal(400, 8)
    assert read(norm, x)["initial_share"] == 1
    for step in range(50):
        norm(normal(16, 8, seed=step))
    found = read(norm, x, 16)
    assert found["initial_share"] == 0
    share = 1 / 50 / (2 - 1 / 50) / 16
    expected = math.sqrt(2 / math.pi * (1 / 400 + share))
    assert found["running_mean_gap_floor"] == pytest.approx(expected, rel=0.001)
