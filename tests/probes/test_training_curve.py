"""Loss, accuracy and the norms of gradient and update, against autograd and counting."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlens.probes.training_curve import TrainingCurve
from normlens.risk import EmpiricalRisk
from normlens.run.lens import Lens
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step
from normlens.run.reading import Reading


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model: nn.Module, criterion: Any, data: Any, **moment: Any) -> dict[str, Reading]:
    risk = EmpiricalRisk(model, criterion, data)
    step = Step(3, risk, Activations(risk), Previous(), moment.pop("optimizer", None), torch.Generator(), **moment)
    return {reading.name: reading for reading in TrainingCurve()(step)}


def network(outputs: int = 3) -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs)).double()
    for seed, p in enumerate(layers.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    return layers


def of_outputs(outputs: Tensor, targets: Tensor, loss: Any = lambda o, t: o.sum()) -> dict[str, Reading]:
    return read(nn.Identity(), loss, (outputs, targets))


@pytest.mark.parametrize("sizes", [(50,), (20, 20, 10)])
def test_accuracy_is_the_share_of_right_answers_with_its_binomial_error(sizes):
    x, targets, model = normal(50, 4), torch.arange(50) % 3, network().eval()
    right = (model(x).argmax(1) == targets).numpy()
    found = read(model, functional.cross_entropy, list(zip(x.split(sizes), targets.split(sizes), strict=True)))
    assert 0.1 < right.mean() < 0.9
    assert found["accuracy"].value == pytest.approx(right.mean(), rel=1e-15)
    assert found["accuracy"].error == pytest.approx(math.sqrt(right.var() / 50), rel=1e-12)
    assert found["accuracy"].n == 50


def test_targets_marked_to_be_ignored_count_neither_right_nor_wrong():
    outputs = torch.eye(4, dtype=torch.float64)
    found = of_outputs(outputs, torch.tensor([0, -100, 2, 0]), functional.cross_entropy)
    assert (found["accuracy"].value, found["accuracy"].n) == (pytest.approx(2 / 3, rel=1e-15), 3)
    assert "accuracy" not in of_outputs(outputs, torch.full((4,), -100))


def test_every_pixel_of_a_segmentation_is_an_answer():
    outputs, targets = normal(2, 3, 4, 5), torch.arange(40).view(2, 4, 5) % 3
    expected = (outputs.numpy().argmax(1) == targets.numpy()).mean()
    found = of_outputs(outputs, targets, functional.cross_entropy)
    assert (found["accuracy"].value, found["accuracy"].n) == (pytest.approx(expected, rel=1e-15), 40)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (normal(5, 3), normal(5, 3)),
        (normal(5), normal(5)),
        (normal(5, 1), normal(5)),
        (normal(5, 3), torch.ones(5, dtype=torch.bool)),
        (normal(5, 3), torch.ones(5, 3, dtype=torch.long)),
        (normal(5, 7, 3), torch.ones(5, 7, dtype=torch.long)),  # tokens: the classes are the last dimension
        (normal(5, 3), [1, 2, 0, 1, 2]),
    ],
)
def test_where_targets_are_no_class_indices_there_is_no_accuracy(outputs, targets):
    assert set(of_outputs(outputs, targets)) == {"loss", "gradient_norm"}


@pytest.mark.parametrize("mode", [True, False])
def test_loss_and_gradient_norm_are_autograd_s(mode):
    model, x, targets = network().train(mode), normal(20, 4), torch.arange(20) % 3
    found = read(model, functional.cross_entropy, (x, targets))
    loss = functional.cross_entropy(model(x), targets)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert found["loss"].value == pytest.approx(loss.item(), rel=1e-12)
    assert found["gradient_norm"].value == pytest.approx(norm.item(), rel=1e-12)


def test_frozen_parameters_are_no_part_of_the_gradient_norm():
    model, data = network().eval(), (normal(20, 4), torch.arange(20) % 3)
    model[0].requires_grad_(False)
    functional.cross_entropy(model(data[0]), data[1]).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
    found = read(model, functional.cross_entropy, data)
    assert found["gradient_norm"].value == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_recorded_as_such(bad):
    found = read(network(), lambda o, t: o.mean() * bad, (normal(5, 4), normal(5)), loss=bad)
    for name in ("loss", "gradient_norm", "batch_loss"):
        assert not math.isfinite(found[name].value)


def test_what_the_moment_does_not_know_is_left_out_and_what_it_knows_is_passed_on():
    model, data = network(1), (normal(5, 4), normal(5, 1))
    assert set(read(model, functional.mse_loss, data)) == {"loss", "gradient_norm"}
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.3}, {"params": model[3].parameters()}], lr=9)
    update = {"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, -4.0]])}
    found = read(model, functional.mse_loss, data, optimizer=optimizer, loss=0.25, update=update)
    assert found["learning_rate"].value == 0.3
    assert found["batch_loss"].value == 0.25
    assert found["update_norm"].value == 5


def test_norms_neither_overflow_nor_round_in_half_precision():
    update = {"w": torch.full((10_000,), 100.0, dtype=torch.float16)}
    found = read(network(1), functional.mse_loss, (normal(5, 4), normal(5, 1)), update=update)
    assert found["update_norm"].value == pytest.approx(1e4, rel=1e-12)


def test_an_update_of_plain_sgd_is_the_learning_rate_times_the_gradient(tmp_path: Path):
    """The probe data are the training batch, so the gradient at step t - 1 is the one that made step t."""
    model, x, targets = network(), normal(20, 4), torch.arange(20) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with Lens(model, functional.cross_entropy, (x, targets), probes=[TrainingCurve()], out=tmp_path / "run", every=1,
              optimizer=optimizer, on_error="raise") as lens:  # fmt: skip
        for _ in range(4):
            loss = functional.cross_entropy(model(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lens.step(loss=loss)
            schedule.step()
    steps = [{r.name: r.value for r in lens.run.readings("training_curve", step)} for step in range(5)]
    assert "update_norm" not in steps[0]
    for before, now in pairwise(steps):
        assert now["update_norm"] == pytest.approx(now["learning_rate"] * before["gradient_norm"], rel=1e-9)
        assert now["batch_loss"] == pytest.approx(before["loss"], rel=1e-12)
    np.testing.assert_allclose([s["learning_rate"] for s in steps[1:]], [0.1, 0.05, 0.025, 0.0125], rtol=1e-12)
