"""Power norm divides by what was, and its gradient is what the paper writes, not that of its output."""

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
from normlens.nn.power_norm import PowerNorm
from normlens.risk import EmpiricalRisk

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def settled(draw, channels=3, **settings):
    """A layer far from its start, with a running mean square and a running term of its own."""
    layer = PowerNorm(channels, dtype=torch.float64, **{"warmup": 0, "backward_momentum": 0.3, **settings})
    layer.running_mean_square.copy_(draw(channels).exp())
    layer.gradient_moment.copy_(draw(channels))
    layer.num_batches_tracked += 1000
    if layer.affine:
        layer.weight.data, layer.bias.data = draw(channels), draw(channels)
    return layer


def gradient(layer, x, cotangent):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, cotangent)[0]


def afresh(layer, x):
    """One call from the state the layer is in, which stays as it is."""
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    return functional_call(copy.deepcopy(layer), state, (x,))


def test_the_output_is_divided_by_the_root_mean_square_of_before_the_batch():
    layer = PowerNorm(1, eps=0.0, momentum=0.1, warmup=0, dtype=torch.float64)
    layer.running_mean_square.fill_(4.0)
    layer.num_batches_tracked += 50
    y = layer(torch.tensor([[2.0], [4.0]], dtype=torch.float64))
    assert_close(y.flatten().tolist(), [1.0, 2.0], **CLOSE)
    assert_close(layer.running_mean_square.item(), 0.9 * 4 + 0.1 * 10, **CLOSE)


def test_while_warming_up_each_channel_has_mean_square_one_and_the_running_one_averages_all_batches(draw):
    layer = PowerNorm(3, eps=0.0, momentum=0.01, warmup=4, dtype=torch.float64)
    batches = [draw(5, 3, 2) * 3 + 1 for _ in range(5)]
    outputs = [layer(x) for x in batches]
    squares = torch.stack([x.square().mean((0, 2)) for x in batches])
    assert_close(layer.running_mean_square, squares.mean(0), **CLOSE)
    for y in outputs[:4]:
        assert_close(y.square().mean((0, 2)).tolist(), [1.0] * 3, **CLOSE)
    want = batches[4] / squares[:4].mean(0)[:, None].sqrt()
    assert_close(outputs[4], want, **CLOSE)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2), (2, 3, 2, 2)])
def test_the_gradient_is_the_papers_and_so_is_the_running_term_after_it(draw, shape):
    layer = settled(draw)
    psi, nu = layer.running_mean_square.clone(), layer.gradient_moment.clone()
    x, cotangent = draw(*shape), draw(*shape)
    _, got = gradient(layer, x, cotangent)
    wide = (3, *(1,) * (len(shape) - 2))
    root, b = (psi + layer.eps).sqrt().reshape(wide), 0.3
    normalized, g = x / root, cotangent * layer.weight.detach().reshape(wide)
    assert_close(got, (g - b * nu.reshape(wide) * normalized) / root, **CLOSE)
    lam, gam = ((v * normalized).mean(batch_dims(x)) for v in (g, normalized))
    assert_close(b * layer.gradient_moment, (b * nu) * (1 - b * gam) + b * lam, **CLOSE)  # the paper's nu is b nu


def test_while_warming_up_the_gradient_is_divided_by_what_the_output_was(draw):
    layer = settled(draw, channels=1, warmup=10_000, affine=False, eps=0.0)
    nu, x, g = layer.gradient_moment.clone(), draw(5, 1), draw(5, 1)
    root = x.square().mean().sqrt()
    y, got = gradient(layer, x, g)
    assert_close(y, x / root, **CLOSE)
    assert_close(got, (g - 0.3 * nu * x / root) / root, **CLOSE)


def test_one_batch_seen_over_and_over_brings_the_gradient_to_the_derivative_of_its_own_normalization(draw):
    layer = PowerNorm(3, eps=0.0, backward_momentum=0.5, affine=False, dtype=torch.float64)
    x, g = draw(6, 3, 2), draw(6, 3, 2)
    for _ in range(60):
        _, got = gradient(layer, x, g)  # the error halves each time
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(leaf / leaf.square().mean((0, 2), keepdim=True).sqrt(), leaf, g)
    assert_close(got, want, **CLOSE)
    assert_close((got * x).sum((0, 2)), torch.zeros(3, dtype=torch.float64), **CLOSE)


def test_gradient_and_curvature_are_those_of_the_loss_less_what_the_running_term_weighs(
    draw, double_backward, forward_over_reverse, central_difference
):
    layer, readout = settled(draw), draw(4, 3, 2)
    root = (layer.running_mean_square + layer.eps).sqrt()[:, None]
    weigh = 0.3 / 2 * layer.gradient_moment.clone()[:, None]
    weight, bias = layer.weight.detach()[:, None], layer.bias.detach()[:, None]

    def ours(x):
        return (afresh(layer, x).tanh() * readout).sum()

    def surrogate(x):
        return ((weight * x / root + bias).tanh() * readout).sum() - (weigh * (x / root).square()).sum()

    x, v = draw(4, 3, 2), draw(4, 3, 2)
    leaf = x.clone().requires_grad_()
    assert_close(torch.autograd.grad(ours(leaf), leaf), torch.autograd.grad(surrogate(leaf), leaf), **CLOSE)
    want = double_backward(surrogate, (x,), (v,))
    assert_close(double_backward(ours, (x,), (v,)), want, **CLOSE)
    assert_close(forward_over_reverse(ours, (x,), (v,)), want, **CLOSE)
    assert_close(central_difference(ours, (x,), (v,)), want, rtol=1e-7, atol=1e-7)


def test_the_running_term_moves_in_the_first_backward_pass_of_each_forward_pass_alone(draw):
    layer, x = settled(draw), draw(5, 3).requires_grad_()
    y = layer(x)
    before = layer.gradient_moment.clone()
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    after = layer.gradient_moment.clone()
    assert (after != before).all()
    torch.autograd.grad(first.sum(), x, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(layer.gradient_moment, after)


def test_neither_eval_mode_nor_a_forward_pass_alone_moves_the_running_term(draw):
    layer, x = settled(draw), draw(5, 3)
    before = layer.gradient_moment.clone()
    layer(x)
    layer.eval()
    gradient(layer, x, draw(5, 3))
    assert torch.equal(layer.gradient_moment, before)


def test_in_eval_mode_the_gradient_is_exact(draw):
    layer, x = settled(draw).eval(), draw(4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    want = layer.weight.detach() / (layer.running_mean_square + layer.eps).sqrt()
    (got,) = torch.autograd.grad(layer(x).sum(), x)
    assert_close(got, want[:, None].expand_as(x), **CLOSE)


def test_curvature_operators_of_a_model_in_train_mode_are_symmetric_and_linear(draw):
    model = nn.Sequential(nn.Linear(4, 3), settled(draw), nn.Tanh(), nn.Linear(3, 2)).double()
    for parameter in model.parameters():
        parameter.data = draw(*parameter.shape)
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, (draw(6, 4), torch.arange(6) % 2), mode="train")
    before = copy.deepcopy(model.state_dict())
    for operator in (hessian(risk), gauss_newton(risk)):
        dense, v = operator.dense(), draw(operator.shape[0])
        assert_close(dense, dense.T, rtol=1e-11, atol=1e-11)
        assert_close(operator @ v, dense @ v, rtol=1e-11, atol=1e-11)
    assert torch.linalg.eigvalsh(dense).min() > -1e-10 * torch.linalg.eigvalsh(dense).max()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_single_value_is_normalized_in_train_mode_too():
    layer = PowerNorm(2, eps=0.0, dtype=torch.float64)
    assert_close(layer(torch.tensor([[3.0, -2.0]], dtype=torch.float64)).tolist(), [[1.0, -1.0]], **CLOSE)


def test_the_channels_are_scaled_and_shifted_by_weight_and_bias(draw):
    layer, x = settled(draw), draw(5, 3, 2)
    plain = copy.deepcopy(layer)
    plain.weight.data.fill_(1)
    plain.bias.data.fill_(0)
    assert_close(layer(x), layer.weight[:, None] * plain(x) + layer.bias[:, None], **CLOSE)


def test_resetting_forgets_all_batches(draw):
    layer = settled(draw)
    gradient(layer, draw(4, 3), draw(4, 3))
    layer.reset_parameters()
    assert [t.tolist() for t in layer.state_dict().values()] == [[1.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3, 0]
