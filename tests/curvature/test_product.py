from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.layout import ParameterLayout
from normlens.curvature.product import Compiled, ForwardOverReverse, Linearized, RecomputedGraph, RetainedGraph
from normlens.risk import EmpiricalRisk
from support.curvature import relative_error, vector
from support.networks import batch, conv_batch_norm, mlp

cross_entropy = nn.functional.cross_entropy


def pieces(model: nn.Module):
    x, y = batch()
    one = (x.double(), y)
    risk = EmpiricalRisk(model.double(), cross_entropy, one)
    return risk, ParameterLayout(risk), one


@pytest.mark.parametrize("product", [ForwardOverReverse, RecomputedGraph, Linearized])
def test_all_ways_agree_with_the_retained_graph(product):
    parts = pieces(conv_batch_norm())
    v = vector(parts[1].n)
    assert relative_error(product(*parts)(v), RetainedGraph(*parts)(v)) <= 1e-12


@pytest.mark.slow
def test_the_compiled_product_agrees_with_the_retained_graph():
    parts = pieces(mlp())
    v = vector(parts[1].n)
    assert relative_error(Compiled(*parts)(v), RetainedGraph(*parts)(v)) <= 1e-12


def test_a_retained_graph_can_be_used_again_and_again():
    parts = pieces(mlp())
    product, v = RetainedGraph(*parts), vector(parts[1].n)
    assert torch.equal(product(v), product(v))


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    x, y = batch()
    risk = EmpiricalRisk(nn.Linear(12, 3), lambda o, _: o.mean(), (x, y))
    layout = ParameterLayout(risk)
    assert not RetainedGraph(risk, layout, (x, y))(torch.ones(layout.n)).any()


def test_a_loss_that_is_no_scalar_is_refused():
    x, y = batch()
    risk = EmpiricalRisk(mlp(), lambda o, _: o, (x, y))
    with pytest.raises(ValueError, match=r"must be a scalar tensor, the mean over the batch; got \(32, 3\)"):
        RetainedGraph(risk, ParameterLayout(risk), (x, y))
