from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.curvature.fisher import fisher
from normlens.curvature.gauss_newton import gauss_newton
from normlens.curvature.hessian import hessian
from normlens.risk import EmpiricalRisk
from support.curvature import dense_jacobian, relative_error
from support.networks import NETWORKS, batch, mlp

cross_entropy = nn.functional.cross_entropy


def softmax_hessian(p: torch.Tensor) -> torch.Tensor:
    """The block-diagonal Hessian of the mean cross-entropy by the logits, from its closed form."""
    return torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p]) / len(p)


@pytest.mark.parametrize("network", ["mlp", "conv_batch_norm"])
def test_it_is_the_jacobian_around_the_hessian_of_the_loss_by_the_outputs(network):
    model = NETWORKS[network]().double()
    x, y = batch(20)
    x = x.double()
    jacobian = dense_jacobian(model, x)
    p = (model(x)).softmax(1).detach()
    expected = jacobian.T @ softmax_hessian(p) @ jacobian
    operator = gauss_newton(EmpiricalRisk(model, cross_entropy, (x, y)))
    assert relative_error(operator.dense(), expected) <= 1e-11


def test_for_a_linear_model_it_is_the_hessian():
    model = nn.Linear(12, 3).double()
    x, y = batch(20)
    risk = EmpiricalRisk(model, cross_entropy, (x.double(), y))
    assert relative_error(gauss_newton(risk).dense(), hessian(risk).dense()) <= 1e-12


def test_least_squares_gives_the_gram_matrix_of_the_inputs():
    """T3: the Hessian of 1/2 (a - y)^2 is H'H/N."""
    x, _ = batch(20)
    x, y = x.double(), torch.zeros(20, 1, dtype=torch.float64)
    model = nn.Linear(12, 1).double()
    risk = EmpiricalRisk(model, lambda a, y: 0.5 * (a - y).square().mean(), (x, y))
    extended = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    assert relative_error(gauss_newton(risk).dense(), extended.T @ extended / 20) <= 1e-12


def test_a_loss_linear_in_the_outputs_has_none():
    x, y = batch(8)
    operator = gauss_newton(EmpiricalRisk(mlp(), lambda o, _: o.mean(), (x, y)))
    assert not operator.dense().any()


def test_batches_are_weighted_by_their_size():
    model = mlp().double()
    x, y = batch(25)
    x = x.double()
    whole = gauss_newton(EmpiricalRisk(model, cross_entropy, (x, y))).dense()
    parts = [(x[:20], y[:20]), (x[20:], y[20:])]
    assert relative_error(gauss_newton(EmpiricalRisk(model, cross_entropy, parts)).dense(), whole) <= 1e-12


def test_outputs_that_are_no_tensor_are_refused():
    class Dict(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    with pytest.raises(ValueError, match="a model that returns one tensor; got dict"):
        gauss_newton(EmpiricalRisk(Dict(12, 3), lambda o, y: cross_entropy(o["logits"], y), batch(8)))


def test_parameters_that_the_outputs_do_not_use_are_refused():
    with pytest.raises(ValueError, match="the outputs must depend on the selected parameters"):
        model = nn.ModuleDict({"used": mlp(), "unused": nn.Linear(2, 2)})
        model.forward = lambda x: model["used"](x)
        gauss_newton(EmpiricalRisk(model, cross_entropy, batch(8), params="unused.*"))


def broken() -> nn.Module:
    model = mlp()
    torch.nn.init.constant_(model[4].bias, float("nan"))
    return model


BAD = [
    (lambda: mlp().requires_grad_(False), cross_entropy, 8, "at least one trainable parameter; the model has none"),
    (mlp, cross_entropy, 0, "at least one sample; got none"),
    (mlp, lambda o, y: o, 8, r"must be a scalar tensor, the mean over the batch; got \(8, 3\): take its mean"),
    (mlp, lambda o, y: cross_entropy(o, y) * float("nan"), 8, "the loss must be finite; it is nan"),
    (mlp, lambda o, y: cross_entropy(o.detach(), y), 8, r"the loss must depend on the outputs; .* \.detach\(\)"),
    (broken, cross_entropy, 8, "the outputs must be finite; some are nan or inf"),
]


@pytest.mark.parametrize(("model", "loss", "samples", "match"), BAD)
def test_what_has_no_curvature_is_refused_with_the_cause(model, loss, samples, match):
    batches = [batch(samples)] if samples else []
    with pytest.raises(ValueError, match=match):
        gauss_newton(EmpiricalRisk(model(), loss, batches))


@pytest.mark.parametrize(("model", "loss", "samples", "match"), [BAD[0], BAD[1], BAD[5]])
def test_the_fisher_matrices_refuse_the_same_but_for_the_loss_which_they_do_not_use(model, loss, samples, match):
    batches = [batch(samples)] if samples else []
    for kind in ("exact", "mc"):
        with pytest.raises(ValueError, match=match):
            fisher(EmpiricalRisk(model(), loss, batches), kind)


def test_integer_parameters_are_refused_where_they_are_asked_for_and_passed_over_where_not():
    model = mlp().double()
    model.scale = nn.Parameter(torch.ones(3, dtype=torch.long), requires_grad=False)
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    x, y = batch(8)
    for matrix in (gauss_newton, fisher):
        with pytest.raises(ValueError, match=r"floating-point; 'scale' is torch.int64: leave it out with params="):
            matrix(EmpiricalRisk(model, cross_entropy, (x.double(), y), params=["scale", "0.weight"]))
        assert "scale" not in matrix(EmpiricalRisk(model, cross_entropy, (x.double(), y))).layout.shapes
