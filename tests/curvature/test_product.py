from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.layout import ParameterLayout
from normlens.curvature.product import Compiled, ForwardOverReverse, Linearized, RecomputedGraph, RetainedGraph
from normlens.risk import EmpiricalRisk
from support.curvature import relative_error, vector
from support.networks import NETWORKS, batch, conv_batch_norm, mlp

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
@pytest.mark.parametrize("network", ["mlp", "dropout"])
def test_the_compiled_product_agrees_with_the_retained_graph(network):
    parts = pieces(NETWORKS[network]())
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


@pytest.mark.parametrize("product", [ForwardOverReverse, Linearized])
def test_dropout_masks_are_traced_as_they_were_drawn(product):
    parts = pieces(NETWORKS["dropout"]())
    v, before = vector(parts[1].n), torch.get_rng_state()
    made = product(*parts)
    assert relative_error(made(v), RetainedGraph(*parts)(v)) <= 1e-12
    assert torch.equal(made(v), made(v))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_linearized_product_is_linear_and_leaves_what_it_was_given_alone():
    parts = pieces(conv_batch_norm())
    product = Linearized(*parts)
    u, v = vector(parts[1].n), vector(parts[1].n, 1)
    kept = v.clone()
    assert relative_error(product(3 * u - v), 3 * product(u) - product(v)) <= 1e-13
    assert torch.equal(v, kept)


def test_every_batch_has_code_of_its_own():
    """Dynamo compiles one code object eight times, as that of a closure for eight batches, and then runs eagerly."""
    parts = pieces(mlp())
    first, second = (Linearized(*parts)._apply.__code__ for _ in range(2))
    assert first is not second
