from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations, measure
from normlens.run.probe import Previous, Reading, Step
from support.networks import batch, dropout, mlp


@dataclass(frozen=True)
class Draws:
    def cost(self, step):
        return 1.0

    def __call__(self, step):
        yield Reading("drawn", torch.rand(1, generator=step.generator).item())
        yield Reading("masked", step.risk.model(step.batch[0]).sum().item())


@dataclass(frozen=True)
class Twice:
    def cost(self, step):
        return 1.0

    def __call__(self, step):
        return [Reading("same", 1.0, layer="a"), Reading("same", 2.0, layer="a")]


@dataclass(frozen=True)
class Interrupted:
    def cost(self, step):
        return 1.0

    def __call__(self, step):
        raise KeyboardInterrupt


def moment(model: nn.Module, index: int = 4, mode: str | None = None) -> Step:
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, batch(), mode=mode)
    return Step(index, risk, Activations(risk), Previous(), None, torch.Generator(), batch())


def ask(probe, step, seed=0):
    return measure(step.risk.model, probe, "p", step, Previous(), elapsed=1.5, seed=seed)


def test_the_same_step_and_seed_draw_the_same_and_another_step_draws_otherwise():
    model = dropout()
    first, again, other = (
        [reading.value for reading in ask(Draws(), moment(model, index))[0].readings] for index in (4, 4, 5)
    )
    assert first == again
    assert first[0] != other[0]


def test_two_readings_of_one_name_are_a_failure_that_names_them():
    result, error = ask(Twice(), moment(mlp()))
    assert result.status == "failed"
    assert result.readings == ()
    assert isinstance(error, ValueError)
    assert "('a', 'same') more than once" in result.message


def test_a_failure_says_the_type_and_the_line():
    result, _ = ask(Twice(), moment(mlp()))
    assert result.message.startswith("ValueError: ")
    assert result.message.endswith(")")
    assert "measure.py:" in result.message


def test_keyboard_interrupt_is_not_contained():
    with pytest.raises(KeyboardInterrupt):
        ask(Interrupted(), moment(mlp()))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_probe_that_calls_a_module_directly_finds_it_in_the_mode_of_the_risk(mode):
    model = dropout().train(mode == "eval")
    result, _ = ask(Draws(), moment(model, mode=mode))
    expected = dropout()
    expected.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    total = expected.train(mode == "train")(batch()[0]).sum().item()
    assert result.mode == mode
    assert result.readings[1].value == total


def test_one_forward_pass_serves_all_layers_and_all_probes():
    model = mlp()
    calls = []
    original = model[0].forward
    model[0].forward = lambda x: calls.append(1) or original(x)
    activations = moment(model).activations
    assert list(activations("0")) == ["0"]
    assert list(activations(["2", "4"])) == ["2", "4"]
    assert len(calls) == 1
