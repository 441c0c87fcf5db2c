"""Accuracy, calibration error and shift are those of the model by hand, in each of the three states."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.inference import WeightNoise, calibrate_batchnorm
from normlens.nn import BatchNorm, MixtureNorm
from normlens.probes.calibration import Calibration
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

EPS = torch.finfo(torch.float64).eps
STATES = ("clean", "noisy", "calibrated")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_of(model: nn.Module, data: Any, mode: str = "eval") -> Step:
    risk = EmpiricalRisk(model, lambda outputs, targets: outputs.mean(), data, mode=mode)
    return Step(0, risk, Activations(risk), Previous(), None, torch.Generator().manual_seed(5))


def read(model: nn.Module, data: Any, mode: str = "eval", **settings: Any) -> dict[Any, Any]:
    """Measured on a copy, since undoing what a probe does to the model is the lens's business."""
    readings = Calibration(**settings)(step_of(copy.deepcopy(model), data, mode))
    return {(r.layer, r.name): r for r in readings}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16, bias=False), BatchNorm(16), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(16, 8), BatchNorm(8), nn.ReLU(), nn.Linear(8, 3),
        ).double().eval()  # fmt: skip


def scores_as_they_come(classes: int = 3) -> nn.Module:
    """A model that answers its input."""
    model = nn.Linear(classes, classes, bias=False).double()
    model.weight.data.copy_(torch.eye(classes))
    return model


def ece(scores: Tensor, targets: Tensor, bins: int) -> float:
    """The definition, bin by bin."""
    p = scores.softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == targets.numpy()
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_without_noise_accuracy_and_calibration_error_are_their_definitions(bins):
    scores, targets = 2 * normal(300, 3), torch.arange(300) % 3
    found = read(scores_as_they_come(), (scores, targets), scale=0.0, bins=bins)
    share = (scores.argmax(1) == targets).double().mean().item()
    for state in STATES:
        assert found["", f"accuracy_{state}"].value == share
        assert found["", f"accuracy_{state}"].error == pytest.approx(math.sqrt(share * (1 - share) / 300), rel=4 * EPS)
        assert found["", f"ece_{state}"].value == pytest.approx(ece(scores, targets, bins), rel=1e3 * EPS)
        assert found["", f"ece_{state}"].n == 300


def test_in_one_bin_the_error_of_the_calibration_error_is_that_of_a_mean():
    scores, targets = normal(200, 3), torch.arange(200) % 3
    found = read(scores_as_they_come(), (scores, targets), scale=0.0, bins=1)["", "ece_clean"]
    gap = (scores.argmax(1) == targets).double() - scores.softmax(1).amax(1)
    assert found.value == pytest.approx(gap.mean().abs().item(), rel=1e3 * EPS)
    assert found.error == pytest.approx((gap.std() / math.sqrt(200)).item(), rel=1e3 * EPS)


def test_a_sure_and_right_prediction_has_no_calibration_error():
    scores = 1000 * torch.eye(3, dtype=torch.float64)
    found = read(scores_as_they_come(), (scores, torch.arange(3)), scale=0.0)
    assert (found["", "ece_clean"].value, found["", "accuracy_clean"].value) == (0, 1)


@pytest.mark.parametrize("kind", ["gaussian", "multiplicative", "uniform"])
def test_the_three_states_are_the_model_by_hand(kind):
    model, x = network(), normal(90, 6) + 0.5
    targets = model(x).argmax(1)
    parts = [(x[:50], targets[:50]), (x[50:], targets[50:])]
    found = read(model, parts, kind=kind, scale=0.5)
    accuracies = {"clean": (model(x).argmax(1) == targets).double().mean().item()}
    with WeightNoise(model, kind, 0.5, generator=torch.Generator().manual_seed(5)):
        accuracies["noisy"] = (model(x).argmax(1) == targets).double().mean().item()
        calibrate_batchnorm(model, parts, layerwise=True)
        accuracies["calibrated"] = (model(x).argmax(1) == targets).double().mean().item()
        by_hand = ece(model(x).detach(), targets, 15)
    assert accuracies["noisy"] < accuracies["clean"] == 1
    assert accuracies == {state: found["", f"accuracy_{state}"].value for state in STATES}
    assert found["", "ece_calibrated"].value == pytest.approx(by_hand, rel=1e-9)


def test_the_shift_is_the_distance_of_the_input_s_moments_from_the_running_statistics():
    model = nn.Sequential(scores_as_they_come(4), BatchNorm(4, eps=0.5), nn.Linear(4, 3)).double()
    x = normal(50, 4) * torch.tensor([1.0, 2, 3, 4]) + 2
    running_mean, running_var = torch.arange(4.0).double(), torch.tensor([1.0, 2, 0.5, 3]).double()
    model[1].running_mean.copy_(running_mean)
    model[1].running_var.copy_(running_var)
    found = read(model, (x, torch.zeros(50, dtype=torch.long)), scale=0.0)
    shift = ((x.mean(0) - running_mean).abs() / (running_var + 0.5).sqrt()).mean().item()
    ratio = ((x.var(0) + 0.5) / (running_var + 0.5)).log().abs().mean().item() / 2
    for state in ("clean", "noisy"):
        assert found["1", f"mean_shift_{state}"].value == pytest.approx(shift, rel=1e3 * EPS)
        assert found["1", f"log_scale_{state}"].value == pytest.approx(ratio, rel=1e3 * EPS)
    assert found["1", "mean_shift_calibrated"].value <= 1e2 * EPS
    assert found["1", "log_scale_calibrated"].value <= 1e2 * EPS


def test_every_batch_norm_has_its_shifts_and_all_of_them_are_gone_after_calibration():
    found = read(network(), (normal(40, 6), torch.zeros(40, dtype=torch.long)), scale=0.3)
    assert {layer for layer, _ in found} == {"", "1", "5"}
    for layer in ("1", "5"):
        assert found[layer, "mean_shift_noisy"].value != found[layer, "mean_shift_clean"].value
        assert found[layer, "mean_shift_calibrated"].value < 1e-12
        assert found[layer, "log_scale_calibrated"].value < 1e-12


def test_a_model_without_batch_norm_has_nothing_to_calibrate():
    found = read(nn.Linear(6, 3).double(), (normal(40, 6), torch.zeros(40, dtype=torch.long)), scale=1.0)
    for kind in ("accuracy", "ece"):
        assert found["", f"{kind}_calibrated"].value == found["", f"{kind}_noisy"].value
    assert {layer for layer, _ in found} == {""}


def test_it_is_about_inference_whatever_the_mode_of_the_training():
    data = (normal(40, 6), torch.zeros(40, dtype=torch.long))
    train, evaluated = (read(network(), data, mode) for mode in ("train", "eval"))
    assert {key: reading.value for key, reading in train.items()} == {key: r.value for key, r in evaluated.items()}


def test_classes_are_dimension_1_and_negative_targets_are_left_out():
    scores, targets = normal(20, 3, 4, 5), torch.arange(400).reshape(20, 4, 5) % 3
    model = nn.Conv2d(3, 3, 1, bias=False).double()
    model.weight.data.copy_(torch.eye(3).reshape(3, 3, 1, 1))
    targets[:, 0] = -100
    found = read(model, (scores, targets), scale=0.0)
    flat, wanted = scores[:, :, 1:].movedim(1, -1).reshape(-1, 3), targets[:, 1:].flatten()
    assert found["", "accuracy_clean"].value == (flat.argmax(1) == wanted).double().mean().item()
    assert found["", "ece_clean"].value == pytest.approx(ece(flat, wanted, 15), rel=1e3 * EPS)
    assert found["", "ece_clean"].n == 300


def test_scores_that_are_nan_are_neither_right_nor_calibrated():
    scores = normal(20, 3)
    scores[3] = math.nan
    found = read(scores_as_they_come(), (scores, torch.zeros(20, dtype=torch.long)), scale=0.0)
    assert math.isnan(found["", "accuracy_clean"].value)
    assert math.isnan(found["", "ece_clean"].value)


def test_it_says_beforehand_that_every_batch_norm_costs_a_forward_pass():
    data = (normal(40, 6), torch.zeros(40, dtype=torch.long))
    assert Calibration().cost(step_of(network(), data)) == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("model", "targets", "said"),
    [
        (nn.Linear(6, 3), torch.zeros(40, 3), r"class indices.*got torch\.float32 \(40, 3\)"),
        (nn.Linear(6, 3), torch.zeros(40), r"class indices.*got torch\.float32 \(40,\)"),
        (nn.Linear(6, 3), torch.zeros(39, dtype=torch.long), r"class indices.*got torch\.int64 \(39,\)"),
        (nn.Linear(6, 3), None, "class indices.*got NoneType"),
        (nn.Linear(6, 3), torch.full((40,), -100), "at least one sample with a target of at least 0"),
        (nn.LSTM(6, 3), torch.zeros(40, dtype=torch.long), "must return one tensor.*got tuple"),
        (nn.Sequential(nn.Linear(6, 3), MixtureNorm(3)), torch.zeros(40, dtype=torch.long), "got MixtureNorm at '1'"),
    ],
)
def test_what_it_cannot_judge_is_refused(model, targets, said):
    with pytest.raises(ValueError, match=said):
        read(model.double(), (normal(40, 6), targets))
