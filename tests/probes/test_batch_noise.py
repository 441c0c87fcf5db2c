"""Noise of batch statistics in a network: laws, the training's batch, running statistics, the loss in both modes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.nn import BatchNorm, DecorrelatedBatchNorm, GhostBatchNorm, GroupNorm, IndependentComponent, InstanceNorm
from normlens.probes.batch_noise import BatchNoise
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ask(
    model: nn.Module, x: Tensor, *, training_batch: int | None = None, previous: Previous | None = None, **settings: Any
) -> dict[tuple[str, str], Reading]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten(1).mean(1) - targets).square().mean()

    y = torch.linspace(-1, 1, len(x)).double()
    risk = EmpiricalRisk(model.double(), loss, (x, y))
    batch = None if training_batch is None else (x[:1].expand(training_batch, *x.shape[1:]), y)
    generator = torch.Generator().manual_seed(7)
    step = Step(3, risk, Activations(risk), previous or Previous(), None, generator, batch)
    return {(r.layer, r.name): r for r in BatchNoise(**settings)(step)}


def read(model: nn.Module, x: Tensor, **settings: Any) -> dict[tuple[str, str], float]:
    return {key: float(reading.value) for key, reading in ask(model, x, **settings).items()}


def test_independent_gaussian_values_obey_the_law_within_its_standard_error():
    found = ask(nn.Sequential(nn.BatchNorm2d(16)), normal(256, 16, 4, 4), training_batch=32)
    for name in ("mean_noise", "std_noise"):
        reading = found["0", name]
        assert abs(float(reading.value) - 1) < 4 * reading.error
        assert reading.error < 0.06
        assert reading.n == 256 * 16
    assert found["0", "excess_kurtosis"].value == pytest.approx(0, abs=0.1)


def test_positions_that_are_the_same_leave_as_many_effective_values_as_samples():
    x = normal(128, 4, 1, 1).expand(128, 4, 3, 3)
    found = read(nn.Sequential(nn.BatchNorm2d(4)), x, training_batch=16)
    assert found["0", "values_per_channel"] == 16 * 9
    assert found["0", "effective_values"] == pytest.approx(16, rel=1e-10)
    assert found["0", "mean_noise"] == pytest.approx(9, rel=1e-10)
    assert found["0", "statistic_error"] == pytest.approx(1 / 4, rel=1e-10)
    assert found["0", "batch_error"] == pytest.approx(1 / 16, rel=1e-10)


def test_errors_of_what_is_derived_from_the_noise_follow_from_its_own():
    found = ask(nn.Sequential(nn.BatchNorm2d(8)), normal(100, 8, 3, 3) + normal(100, 8, 1, 1, seed=1))
    noise = found["0", "mean_noise"]
    relative = noise.error / float(noise.value)
    for name, power in (("batch_error", 1), ("effective_values", 1), ("statistic_error", 0.5)):
        assert found["0", name].error == pytest.approx(power * relative * float(found["0", name].value), rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "training_batch", "cut"), [(256, 32, 32), (256, 64, 32), (128, None, 16), (600, 70, 70), (9, 4, 2)]
)
def test_the_data_are_cut_by_the_training_s_batch_where_eight_of_them_fit(samples, training_batch, cut):
    found = read(nn.Sequential(nn.BatchNorm1d(3)), normal(samples, 3), training_batch=training_batch)
    assert found["", "cut"] == cut
    assert found["0", "batch_size"] == (training_batch or cut)
    assert math.isnan(found["", "training_batch"]) == (training_batch is None)


def test_the_training_s_batch_is_remembered_where_a_measurement_is_told_of_none():
    before = Previous(last={("", "training_batch"): Reading("training_batch", 5.0)})
    found = read(nn.Sequential(nn.BatchNorm1d(3)), normal(64, 3), previous=before)
    assert found["0", "batch_size"] == found["", "training_batch"] == 5
    unknown = Previous(last={("", "training_batch"): Reading("training_batch", math.nan)})
    assert read(nn.Sequential(nn.BatchNorm1d(3)), normal(64, 3), previous=unknown)["0", "batch_size"] == 8


def test_a_ghost_batch_norm_has_the_statistics_of_its_ghosts():
    found = read(nn.Sequential(GhostBatchNorm(3, ghost_size=8)), normal(200, 3), training_batch=20)
    assert found["0", "batch_size"] == 10
    assert found["0", "statistic_error"] == pytest.approx(math.sqrt(1 / 10), rel=1e-10)


def test_a_cut_that_is_asked_for_is_taken_and_one_too_large_has_no_scatter():
    model, x = nn.Sequential(nn.BatchNorm1d(3)), normal(64, 3)
    assert read(model, x, batch=16)["", "cut"] == 16
    assert math.isnan(read(model, x, batch=40)["0", "std_noise"])
    with pytest.raises(ValueError, match="at least 2 samples to cut; got 1; 32 is usual"):
        BatchNoise(batch=1)


def test_running_statistics_equal_to_the_population_are_within_their_floor():
    found = read(nn.Sequential(nn.BatchNorm1d(256, momentum=0.0)), normal(300, 256), training_batch=32)
    assert found["0", "running_mean_gap"] == pytest.approx(found["0", "running_mean_gap_floor"], rel=0.2)
    assert found["0", "running_mean_gap"] < found["0", "running_gap_floor"]
    off = nn.BatchNorm1d(256, momentum=0.0)
    off.running_mean.fill_(1)
    found = read(nn.Sequential(off), normal(300, 256), training_batch=32)
    assert found["0", "running_mean_gap"] == pytest.approx(1, abs=0.05)
    assert found["0", "running_mean_gap"] > 10 * found["0", "running_gap_floor"]


def test_layers_that_pool_over_the_batch_are_counted_and_no_others():
    model = nn.Sequential(
        nn.BatchNorm2d(4), BatchNorm(4, track_running_stats=False), GroupNorm(4, groups=2), InstanceNorm(4),
        DecorrelatedBatchNorm(4), GhostBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True),
    )  # fmt: skip
    found = read(model.eval(), normal(40, 4, 3, 3))
    assert found["", "layers"] == 3
    assert {layer for layer, _ in found} == {"", "0", "1", "5"}
    assert ("1", "running_mean_gap") not in found
    assert ("1", "statistic_error") in found
    assert read(model.eval(), normal(40, 4, 3, 3), layers="5")["", "layers"] == 1


def test_without_such_a_layer_there_are_the_losses_alone():
    found = read(nn.Sequential(nn.Linear(3, 2), GroupNorm(2, groups=1)), normal(40, 3))
    assert {name for _, name in found} == {"layers", "training_batch", "loss_train", "loss_eval", "loss_gap"}
    assert found["", "layers"] == found["", "loss_gap"] == 0


def test_the_losses_are_those_of_the_model_with_the_batch_s_statistics_and_with_the_running_ones():
    norm = nn.BatchNorm1d(3).double()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    model, x = nn.Sequential(norm, nn.Dropout(0.5), IndependentComponent(3).double()), normal(64, 3)
    found = ask(model.train(), x)
    y = torch.linspace(-1, 1, 64).double()
    expected = {}
    for name, training in (("loss_train", True), ("loss_eval", False)):
        norm.train(training)
        rest = model[2].double().eval()
        each = (rest(norm(x)).mean(1) - y).square().detach()
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.running_var.fill_(1)
        expected[name] = each
        assert found["", name].value == pytest.approx(float(each.mean()), rel=1e-9)
        parts = each.reshape(16, 4).mean(1)
        assert found["", name].error == pytest.approx(float(parts.std() / 4), rel=1e-9)
    gap = expected["loss_eval"] - expected["loss_train"]
    assert found["", "loss_gap"].value == pytest.approx(float(gap.mean()), rel=1e-9)
    assert found["", "loss_gap"].error == pytest.approx(float(gap.reshape(16, 4).mean(1).std() / 4), rel=1e-9)


def test_a_loss_of_outputs_that_cannot_be_cut_has_no_error():
    model = nn.Sequential(nn.Linear(3, 2)).double()
    risk = EmpiricalRisk(model, lambda outputs, _: outputs.square().mean(), {"input": normal(40, 3)})
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    found = {r.name: r for r in BatchNoise()(step)}
    assert math.isfinite(float(found["loss_eval"].value))
    assert math.isnan(found["loss_eval"].error)


def test_one_sample_has_no_noise_and_no_loss_with_its_own_statistics():
    found = read(nn.Sequential(nn.BatchNorm1d(3)).eval(), normal(1, 3))
    assert math.isnan(found["", "loss_train"])
    assert math.isfinite(found["", "loss_eval"])
    assert math.isnan(found["0", "mean_noise"])


def test_the_loss_of_a_classifier_is_that_of_the_probe_data_whatever_their_cut():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)).double().eval()
    x, y = normal(50, 3), torch.arange(50) % 4
    for data in ((x, y), list(zip(x.split(20), y.split(20), strict=True))):
        risk = EmpiricalRisk(model, functional.cross_entropy, data)
        step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
        found = {r.name: r for r in BatchNoise()(step) if not r.layer}
        expected = float(functional.cross_entropy(model(x), y).detach())
        assert found["loss_eval"].value == pytest.approx(expected, rel=1e-12)
        assert found["loss_eval"].n == 50
