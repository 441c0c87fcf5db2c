"""Moving average batch norm averages over the last batches, forward and backward, as its formula says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from normlens.curvature.gauss_newton import gauss_newton
from normlens.curvature.hessian import hessian
from normlens.nn.functional import batch_dims
from normlens.nn.moving_average_batch_norm import MovingAverageBatchNorm
from normlens.risk import EmpiricalRisk

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def layer_of(channels=3, **settings):
    return MovingAverageBatchNorm(channels, dtype=torch.float64, **settings)


def gradient(layer, x, cotangent):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, cotangent)[0]


def trained(draw, **settings):
    """A layer that has seen five batches forward and backward, and is past its warm-up."""
    layer = layer_of(**{"window": 3, "warmup": 0, "momentum": 0.1, **settings})
    if layer.affine:
        layer.weight.data, layer.bias.data = draw(3), draw(3)
    for _ in range(5):
        gradient(layer, draw(4, 3, 2) * 2 + 1, draw(4, 3, 2))
    return layer


def afresh(layer, x):
    """One call from the state the layer is in, which stays as it is."""
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    return functional_call(copy.deepcopy(layer), state, (x,))


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2), (2, 3, 2, 2)])
def test_a_run_of_outputs_and_gradients_is_that_of_the_formula(draw, shape):
    layer = layer_of(window=3, warmup=4, momentum=0.3, limit=1.1)
    layer.weight.data, layer.bias.data = draw(3), draw(3)
    wide = (3, *(1,) * (len(shape) - 2))
    weight, bias = layer.weight.detach().reshape(wide), layer.bias.detach().reshape(wide)
    squares, products, running = [], [], torch.ones(3, dtype=torch.float64)
    for step in range(1, 9):
        x, cotangent = draw(*shape) * (1 + step), draw(*shape)
        y, got = gradient(layer, x, cotangent)
        squares.append(x.square().mean(batch_dims(x)))
        chi = torch.stack(squares[-3:]).mean(0) + layer.eps
        r = (chi / (running + layer.eps)).sqrt().clamp(1 / 1.1, 1.1) if step > 4 else torch.ones(3, dtype=torch.float64)
        z, g = x / chi.sqrt().reshape(wide), r.reshape(wide) * weight * cotangent
        products.append((g * z).mean(batch_dims(x)))
        pooled = torch.stack(products[-3:]).mean(0)
        assert_close(y, r.reshape(wide) * weight * z + bias, **CLOSE)
        assert_close(got, (g - z * pooled.reshape(wide)) / chi.sqrt().reshape(wide), **CLOSE)
        running = running + max(1 / step, 0.3) * (squares[-1] - running)
        assert_close(layer.running_mean_square, running, **CLOSE)


def test_with_a_window_of_one_the_gradient_is_exact(draw):
    layer = trained(draw, window=1, limit=1.0)
    for shape in ((5, 3), (4, 3, 2)):
        assert torch.autograd.gradcheck(lambda x: afresh(layer, x), draw(*shape).requires_grad_())


def test_in_eval_mode_the_gradient_is_exact(draw):
    layer, x = trained(draw).eval(), draw(4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    want = layer.weight * x.movedim(1, -1) / (layer.running_mean_square + layer.eps).sqrt() + layer.bias
    assert_close(layer(x), want.movedim(-1, 1), **CLOSE)


def test_the_window_holds_the_last_batches_of_any_sizes_alike(draw):
    layer = layer_of(window=2, eps=0.0, affine=False)
    first, second, third = draw(3, 3), draw(7, 3) * 2, draw(2, 3) * 3
    for x in (first, second):
        layer(x)
    chi = (second.square().mean(0) + third.square().mean(0)) / 2
    assert_close(layer(third), third / chi.sqrt(), **CLOSE)


def test_the_scale_is_that_of_eval_mode_once_warm_and_as_far_as_the_limit_allows(draw):
    x = draw(5, 3)
    for limit, share in ((1e9, 1.0), (1.0, None), (2.0, 2.0)):
        layer = layer_of(warmup=0, eps=0.0, window=1, limit=limit)
        layer.running_mean_square.copy_(x.square().mean(0) / (16 if limit == 2.0 else 3))
        evaluated = layer.eval()(x)
        normalized = x / x.square().mean(0).sqrt()
        want = evaluated if share == 1.0 else normalized * (share or 1)
        assert_close(layer.train()(x), want, **CLOSE)


def test_gradient_and_curvature_are_those_of_the_loss_less_a_logarithm_of_the_window(
    draw, double_backward, forward_over_reverse, central_difference
):
    layer, readout = trained(draw), draw(4, 3, 2)
    slot, n, w = int(layer.num_batches_tracked) % 3, 8, 3
    others = [s for s in range(3) if s != slot]
    share = layer.past_products[others].sum(0) / w
    assert share.abs().min() > 1e-3
    earlier = layer.past_squares[others].sum(0)
    weight, bias = layer.weight.detach()[:, None], layer.bias.detach()[:, None]
    fixed = {}

    def ours(x):
        return (afresh(layer, x).tanh() * readout).sum()

    def surrogate(x):
        chi = (earlier + x.square().mean((0, 2))) / w + layer.eps
        r = fixed.setdefault("r", (chi.detach() / (layer.running_mean_square + layer.eps)).sqrt().clamp(0.2, 5))
        y = weight * r[:, None] * x / chi.sqrt()[:, None] + bias
        return (y.tanh() * readout).sum() - (share * n * w / 2 * chi.log()).sum()

    x, v = draw(4, 3, 2), draw(4, 3, 2)
    leaf = x.clone().requires_grad_()
    assert_close(torch.autograd.grad(ours(leaf), leaf), torch.autograd.grad(surrogate(leaf), leaf), **CLOSE)
    want = double_backward(surrogate, (x,), (v,))
    assert_close(double_backward(ours, (x,), (v,)), want, **CLOSE)
    assert_close(forward_over_reverse(ours, (x,), (v,)), want, **CLOSE)
    assert_close(central_difference(surrogate, (x,), (v,)), want, rtol=1e-7, atol=1e-7)


def test_one_batch_seen_over_and_over_brings_the_gradient_to_the_derivative_of_its_own_normalization(draw):
    layer = layer_of(window=4, eps=0.0, affine=False)
    x, g = draw(6, 3, 2), draw(6, 3, 2)
    for _ in range(4):
        _, got = gradient(layer, x, g)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(leaf / leaf.square().mean((0, 2), keepdim=True).sqrt(), leaf, g)
    assert_close(got, want, **CLOSE)


def test_a_batch_without_a_backward_pass_counts_as_zero_and_a_second_one_changes_nothing(draw):
    layer = layer_of(window=2)
    gradient(layer, draw(4, 3), draw(4, 3))
    held = layer.past_products.clone()
    assert (held[0] != 0).all()
    layer(draw(4, 3))
    assert torch.equal(layer.past_products, held)
    x = draw(4, 3).requires_grad_()
    y = layer(x)
    assert not layer.past_products.any()  # the third batch takes the place of the first
    torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    kept = layer.past_products.clone()
    assert (kept[0] != 0).all()
    torch.autograd.grad(y.sum(), x)
    assert torch.equal(layer.past_products, kept)


def test_curvature_operators_of_a_model_in_train_mode_are_symmetric_and_linear(draw):
    model = nn.Sequential(nn.Linear(4, 3), trained(draw), nn.Tanh(), nn.Linear(3, 2)).double()
    for parameter in model.parameters():
        parameter.data = draw(*parameter.shape)
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, (draw(6, 4), torch.arange(6) % 2), mode="train")
    before = copy.deepcopy(model.state_dict())
    for operator in (hessian(risk, check=False), gauss_newton(risk)):  # the check sees r move, which is a constant
        dense, v = operator.dense(), draw(operator.shape[0])
        assert_close(dense, dense.T, rtol=1e-11, atol=1e-11)
        assert_close(operator @ v, dense @ v, rtol=1e-11, atol=1e-11)
    assert torch.linalg.eigvalsh(dense).min() > -1e-10 * torch.linalg.eigvalsh(dense).max()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_state_dict_carries_the_window_on(draw):
    layer, fresh = trained(draw), layer_of(window=3, warmup=0, momentum=0.1)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    x, g = draw(4, 3), draw(4, 3)
    assert_close(gradient(fresh, x, g), gradient(layer, x, g), rtol=0, atol=0)
    assert torch.equal(fresh.past_products, layer.past_products)


@pytest.mark.parametrize("setting", ["window", "limit"])
def test_a_window_or_limit_below_one_is_refused(setting):
    with pytest.raises(ValueError, match=f"MovingAverageBatchNorm needs {setting} of at least 1; got 0; window=1 is"):
        layer_of(**{setting: 0})


def test_resetting_forgets_all_batches(draw):
    layer = trained(draw)
    layer.reset_parameters()
    fresh = layer_of(window=3)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), fresh.state_dict().values(), strict=True))
