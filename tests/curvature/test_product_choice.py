from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.central_difference import CentralDifference
from normlens.curvature.hessian import hessian
from normlens.curvature.product import (
    Compiled,
    ForwardOverReverse,
    Linearized,
    RecomputedGraph,
    RetainedGraph,
    SecondDerivativeError,
)
from normlens.curvature.product_choice import _Graph, choose_product
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, relative_error, vector
from support.networks import batch, conv_batch_norm, mlp

cross_entropy = nn.functional.cross_entropy


def data(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batch(n)
    return x.double(), y


class OnlyOnce(torch.autograd.Function):
    """tanh whose backward is a kernel without a derivative."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class OnlyOnceButForward(torch.autograd.Function):
    """The same, with a forward-mode formula and in the form that functorch takes."""

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)

    @staticmethod
    def jvp(ctx, tangent):
        (y,) = ctx.saved_tensors
        return tangent * (1 - y * y)


class Slope(torch.autograd.Function):
    """1 - y^2 as a kernel with forward mode alone."""

    @staticmethod
    def forward(y):
        return 1 - y * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("derivative for slope is not implemented")

    @staticmethod
    def jvp(ctx, tangent):
        return -2 * ctx.saved_tensors[0] * tangent


class ForwardAlone(OnlyOnceButForward):
    """tanh whose second derivative there is in forward mode."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * Slope.apply(ctx.saved_tensors[0])


class Activated(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(12, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("function", [OnlyOnce, OnlyOnceButForward])
def test_where_no_double_backward_exists_products_are_differences_and_say_so(function):
    """Neither autograd.grad nor jvp(grad) raises an error for these; they leave out what lies behind the operation."""
    model = Activated(function.apply).double()
    x, y = data()
    operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y)))
    assert operator.product is CentralDifference
    assert "there is no double backward" in operator.reason
    assert "once_differentiable" in operator.reason
    model.function = torch.tanh
    expected = dense_hessian(model, cross_entropy, x, y)
    v = vector(len(expected))
    assert relative_error(operator @ v, expected @ v) <= 3 * operator.error <= 1e-8
    assert hessian(EmpiricalRisk(model, cross_entropy, (x, y))).product is RetainedGraph


def test_forward_mode_is_tried_before_differences():
    model = Activated(ForwardAlone.apply).double()
    x, y = data()
    operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y)))
    assert operator.product is ForwardOverReverse
    assert "but forward mode works" in operator.reason
    model.function = torch.tanh
    expected = dense_hessian(model, cross_entropy, x, y)
    v = vector(len(expected))
    assert relative_error(operator @ v, expected @ v) <= 1e-11


def test_other_errors_of_a_model_do_not_lead_to_differences():
    def fails(x):
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="the model is broken"):
        hessian(EmpiricalRisk(Activated(fails), cross_entropy, batch()))


def test_where_graphs_do_not_fit_and_forward_mode_is_missing_the_graph_is_built_anew():
    class Twice(torch.autograd.Function):
        """Differentiable as often as one likes, but only backward."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.cos(ctx.saved_tensors[0])

    operator = hessian(EmpiricalRisk(Activated(Twice.apply), cross_entropy, batch()), memory=1)
    assert operator.product is RecomputedGraph


def test_fast_prepares_only_where_the_number_of_products_pays_for_it():
    risk = EmpiricalRisk(mlp(), cross_entropy, batch())
    few = hessian(risk, method="fast", matvecs=1, check=False)
    assert few.product is RetainedGraph
    assert "estimated for 1 products: RetainedGraph" in few.reason
    many = choose_product(risk, "fast", 10**7, None)
    assert many.product is Compiled
    assert all(way in many.reason for way in ("RetainedGraph", "Linearized", "Compiled"))


def test_fast_does_not_compile_convolutions_and_says_so():
    choice = choose_product(EmpiricalRisk(conv_batch_norm(), cross_entropy, batch()), "fast", 10**7, None)
    assert choice.product is Linearized
    assert "compiling does not pay for convolutions" in choice.reason


def test_fast_falls_back_without_a_compiler_and_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    choice = choose_product(EmpiricalRisk(mlp(), cross_entropy, batch()), "fast", 10**7, None)
    assert choice.product is Linearized
    assert "needs a C++ compiler (install g++, or set CXX)" in choice.reason


def test_fast_respects_the_memory_limit():
    risk = EmpiricalRisk(mlp(), cross_entropy, batch())
    graph = _Graph.of(risk).bytes
    tight = choose_product(risk, "fast", 10**7, 2 * graph)
    assert tight.product is RetainedGraph
    assert "a linearized gradient would hold" in tight.reason
    assert choose_product(risk, "fast", 10**7, graph // 2).product is ForwardOverReverse


def test_an_unknown_method_and_two_wishes_at_once_are_refused():
    risk = EmpiricalRisk(mlp(), cross_entropy, batch())
    with pytest.raises(ValueError, match="method must be one of auto, fast; got 'quick'"):
        hessian(risk, method="quick")
    with pytest.raises(ValueError, match=r"product= or method='fast'; got both \(RetainedGraph\): leave one out"):
        hessian(risk, method="fast", product=RetainedGraph)


@pytest.mark.parametrize("product", [RetainedGraph, RecomputedGraph])
def test_an_operation_that_is_once_differentiable_is_refused_where_double_backward_is_asked_for(product):
    """With ``inputs=``, autograd.grad never runs the node that would raise: the product would silently be wrong."""
    risk = EmpiricalRisk(Activated(OnlyOnce.apply), cross_entropy, batch())
    with pytest.raises(SecondDerivativeError, match=r"marked once_differentiable, .* use product=CentralDifference"):
        hessian(risk, product=product) @ torch.ones(131)
