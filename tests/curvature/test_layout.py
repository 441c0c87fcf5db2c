from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.layout import ParameterLayout
from normlens.risk import EmpiricalRisk
from support.networks import batch, mlp


def layout(**settings) -> ParameterLayout:
    return ParameterLayout(EmpiricalRisk(mlp(), nn.functional.cross_entropy, batch(), **settings))


def test_flatten_and_unflatten_are_inverse():
    one = layout()
    v = torch.arange(one.n, dtype=torch.float32)
    assert torch.equal(one.flatten(one.unflatten(v)), v)
    assert {name: t.shape for name, t in one.unflatten(v).items()} == one.shapes


def test_indices_say_where_a_parameter_stands():
    one = layout()
    v = torch.arange(one.n, dtype=torch.float32)
    assert torch.equal(v[one.indices("2.bias", "0.weight")], torch.cat([
        one.unflatten(v)["2.bias"], one.unflatten(v)["0.weight"].reshape(-1)]))  # fmt: skip


def test_an_unknown_name_and_no_parameters_are_refused():
    with pytest.raises(ValueError, match="names must be selected parameters; 'nine' is none of"):
        layout().indices("nine")
    frozen = mlp().requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        ParameterLayout(EmpiricalRisk(frozen, nn.functional.cross_entropy, batch()))
