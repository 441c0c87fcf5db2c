from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.central_difference import CentralDifference
from normlens.curvature.hessian import hessian
from normlens.curvature.operator import restrict
from normlens.curvature.product import (
    ForwardOverReverse,
    RecomputedGraph,
    RetainedGraph,
)
from normlens.risk import EmpiricalRisk
from support.curvature import dense_hessian, relative_error, vector
from support.fingerprint import fingerprint
from support.networks import NETWORKS, batch, conv_batch_norm, mlp

cross_entropy = nn.functional.cross_entropy


def data(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batch(n)
    return x.double(), y


@pytest.mark.parametrize("network", ["mlp", "conv_batch_norm", "lstm", "attention"])
def test_it_is_the_dense_hessian(network):
    model = NETWORKS[network]().double().eval()
    if network in ("mlp", "conv_batch_norm"):
        model.train()
    x, y = data()
    if network == "lstm":
        model.cell.dropout = 0.0
    expected = dense_hessian(model, cross_entropy, x, y)
    operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y)))
    v = vector(len(expected))
    assert relative_error(operator @ v, expected @ v) <= 1e-11


def test_nothing_of_the_model_is_disturbed():
    for network in NETWORKS.values():
        model = network()
        x, y = batch()
        cross_entropy(model(x), y).backward()
        before = fingerprint(model)
        hessian(EmpiricalRisk(model, cross_entropy, (x, y)), check=False) @ vector(1).new_zeros(
            sum(p.numel() for p in model.parameters())
        )
        assert fingerprint(model) == before


def test_dropout_masks_are_the_same_for_all_products_of_an_operator():
    model = NETWORKS["dropout"]().double()
    x, y = data()
    for product in (RetainedGraph, ForwardOverReverse, RecomputedGraph):
        operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y), seed=3), product=product)
        assert operator.check.passed
        v = vector(operator.shape[0])
        assert torch.equal(operator @ v, operator @ v)


def test_ragged_batches_are_weighted_by_their_size():
    model = mlp().double()
    x, y = data(25)
    whole = hessian(EmpiricalRisk(model, cross_entropy, (x, y))).dense()
    parts = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    assert relative_error(hessian(EmpiricalRisk(model, cross_entropy, parts)).dense(), whole) <= 1e-12


def test_tied_weights_are_counted_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12, 12, bias=False)
            self.b = nn.Linear(12, 12, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))[:, :3]

    model = Tied().double()
    x, y = data()
    operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y)))
    assert operator.shape == (144, 144)
    assert operator.check.passed
    assert operator.check.difference <= 1e-6


def test_frozen_and_unused_parameters():
    model = mlp().double()
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    model[0].weight.requires_grad_(False)
    x, y = data()
    operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y)))
    assert "0.weight" not in operator.layout.shapes
    zero = operator.layout.indices("unused.weight", "unused.bias")
    assert not operator.dense()[zero].any()


def test_dict_batches():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, pixels, labels=None):
            return {"logits": self.inner(pixels)}

    model = Takes().double()
    x, y = data()
    risk = EmpiricalRisk(model, lambda out, b: cross_entropy(out["logits"], b["labels"]), {"pixels": x, "labels": y})
    expected = dense_hessian(model.inner, cross_entropy, x, y)
    assert relative_error(hessian(risk).dense(), expected) <= 1e-11


def test_a_block_is_the_block_of_the_dense_hessian():
    model = conv_batch_norm().double()
    x, y = data()
    operator = hessian(EmpiricalRisk(model, cross_entropy, (x, y)))
    block = operator.layout.indices("5.weight")
    assert relative_error(restrict(operator, block).dense(), operator.dense()[block][:, block]) <= 1e-12


def test_when_the_graphs_do_not_fit_the_memory_limit_they_are_not_kept():
    risk = EmpiricalRisk(mlp(), cross_entropy, batch())
    assert hessian(risk).product is RetainedGraph
    assert hessian(risk, memory=1).product is ForwardOverReverse


def test_a_planted_wrong_second_derivative_is_caught():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.saved = x.detach()
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved * gradient

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return Square.apply(self.inner(x))

    for dtype in (torch.float32, torch.float64):
        x, y = data()
        with pytest.warns(RuntimeWarning, match="wrong second derivative"):
            operator = hessian(EmpiricalRisk(Planted().to(dtype), cross_entropy, (x.to(dtype), y)))
        assert operator.check.passed is False
        assert operator.check.difference > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_relu_network_passes_its_check(dtype):
    for network in ("mlp", "conv_batch_norm"):
        x, y = data()
        check = hessian(EmpiricalRisk(NETWORKS[network]().to(dtype), cross_entropy, (x.to(dtype), y))).check
        assert check.passed, check


def frozen() -> nn.Module:
    return mlp().requires_grad_(False)


def detached() -> nn.Module:
    model = mlp()
    model.forward = lambda x: model[4](model[0](x).detach()[:, :16]).detach()
    return model


PRODUCTS = [None, RetainedGraph, RecomputedGraph, ForwardOverReverse, CentralDifference]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("model", "loss", "samples", "match"),
    [
        (frozen, cross_entropy, 8, "at least one trainable parameter; the model has none: set requires_grad"),
        (mlp, cross_entropy, 0, "at least one sample; got none"),
        (mlp, lambda o, y: o, 8, r"must be a scalar tensor, the mean over the batch; got \(8, 3\): take its mean"),
        (mlp, lambda o, y: 0.5, 8, "must be a scalar tensor, the mean over the batch; got float"),
        (mlp, lambda o, y: cross_entropy(o, y) * float("nan"), 8, "the loss must be finite; it is nan"),
        (mlp, lambda o, y: cross_entropy(o, y) + float("inf"), 8, "the loss must be finite; it is inf"),
        (detached, cross_entropy, 8, "no graph reaches them: look for .detach()"),
    ],
)
def test_what_has_no_curvature_is_refused_with_the_cause(model, loss, samples, match, product):
    x, y = batch(8)
    batches = [(x, y)] if samples else []
    with pytest.raises(ValueError, match=match):
        hessian(EmpiricalRisk(model(), loss, batches), product=product)


def test_a_batch_of_no_samples_is_refused():
    empty = (torch.zeros(0, 12), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one sample; got none"):
        hessian(EmpiricalRisk(mlp(), cross_entropy, empty))


def test_integer_parameters_are_refused_where_they_are_asked_for_and_passed_over_where_not():
    model = mlp().double()
    model.scale = nn.Parameter(torch.ones(3, dtype=torch.long), requires_grad=False)
    x, y = data()
    with pytest.raises(ValueError, match=r"floating-point; 'scale' is torch.int64: leave it out with params="):
        hessian(EmpiricalRisk(model, cross_entropy, (x, y), params=["scale", "0.weight"]))
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    assert "scale" not in hessian(EmpiricalRisk(model, cross_entropy, (x, y))).layout.shapes


def test_a_loader_that_yields_other_data_on_the_second_pass_is_refused():
    class Shuffles:
        def __init__(self):
            self.generator = torch.Generator().manual_seed(0)

        def __iter__(self):
            x, y = batch(16)
            order = torch.randperm(16, generator=self.generator)
            yield x[order], y[order]

    with pytest.raises(ValueError, match="the data must be the same at every pass; batch 0 is not what it was"):
        hessian(EmpiricalRisk(mlp(), cross_entropy, Shuffles()))


def test_a_shuffling_data_loader_is_read_in_one_order_and_the_global_state_is_kept():
    dataset = torch.utils.data.TensorDataset(*batch(16))
    risk = EmpiricalRisk(mlp(), cross_entropy, torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True))
    before = torch.get_rng_state()
    first, second = ([x for x, _ in risk.batches()] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
