"""The layers whose input is not the data."""

from __future__ import annotations

import torch
from torch import nn

from normlens.probes.inner_inputs import behind_the_first
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def layers_of(model: nn.Module, x: torch.Tensor) -> list[str]:
    risk = EmpiricalRisk(model, lambda outputs, _: outputs.mean(), (x, x))
    return list(behind_the_first(Step(0, risk, Activations(risk), Previous(), None, torch.Generator())))


def test_the_first_layer_with_parameters_is_left_out_whatever_it_is():
    x = torch.randn(8, 4)
    assert layers_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), x) == ["2"]
    assert layers_of(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), x) == ["1"]
    assert layers_of(nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), x) == []
