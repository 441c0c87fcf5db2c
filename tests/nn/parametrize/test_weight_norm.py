"""Weight normalization: its gradient, its growth under SGD, its kinship with batch norm, and PyTorch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, skip_init
from torch.testing import assert_close

from normlens.nn.functional import batch_norm
from normlens.nn.parametrize import unit_norm, weight_norm

EPS = torch.finfo(torch.float64).eps


def linear(draw, inputs=4, outputs=3):
    layer = skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    layer.weight.data, layer.bias.data = draw(outputs, inputs), draw(outputs)
    return layer


def stored(layer):
    return layer.parametrizations.weight.original0, layer.parametrizations.weight.original1


def known():
    layer = skip_init(nn.Linear, 2, 1, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    weight_norm(layer)
    stored(layer)[0].data.fill_(10)
    return layer


def test_the_filter_3_4_of_gain_10_is_6_8_and_has_the_known_gradient():
    layer = known()
    g, v = stored(layer)
    assert torch.equal(layer.weight, torch.tensor([[6.0, 8.0]], dtype=torch.float64))
    dg, dv = torch.autograd.grad(layer.weight[0, 0], [g, v])
    assert_close(dg, torch.tensor([[0.6]], dtype=torch.float64), rtol=4 * EPS, atol=0)
    assert_close(dv, torch.tensor([[1.28, -0.96]], dtype=torch.float64), rtol=4 * EPS, atol=0)


def test_a_step_of_one_half_from_there_lengthens_the_filter_to_the_known_number():
    layer = known()
    v = stored(layer)[1]
    layer.weight[0, 0].backward()
    torch.optim.SGD([v], lr=0.5).step()
    assert torch.linalg.vector_norm(v).item() == pytest.approx(5.063595560468865, rel=2 * EPS)
    assert math.sqrt(25 + 0.25 * 2.56) == pytest.approx(5.063595560468865, rel=2 * EPS)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((3, 4, 2), 0), ((4, 3, 2, 2), 1), ((3, 4), -1)])
def test_the_gradient_is_the_formula(draw, as_function, shape, dim):
    holder = nn.Module()
    holder.weight = nn.Parameter(draw(*shape))
    weight, _ = as_function(weight_norm(holder, dim=dim))
    v, dw = draw(*shape).requires_grad_(), draw(*shape)
    dims = tuple(axis for axis in range(len(shape)) if axis != dim % len(shape))
    g = draw(*(1 if axis in dims else size for axis, size in enumerate(shape))).requires_grad_()
    dg, dv = torch.autograd.grad(weight(g, v), [g, v], dw)
    length = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    along = (v * dw).sum(dims, keepdim=True) / length
    assert_close(weight(g, v), g * v / length, rtol=8 * EPS, atol=0)
    assert_close(dg, along, rtol=1e-13, atol=1e-14)
    assert_close(dv, g / length * dw - g * along / length**2 * v, rtol=1e-13, atol=1e-14)


def test_second_derivatives_are_the_formula(
    draw, as_function, double_backward, forward_over_reverse, direction_hessian
):
    weight, _ = as_function(weight_norm(linear(draw, outputs=1)))
    g, v, c, move = draw(1, 1), draw(1, 4), draw(1, 4), draw(1, 4)
    want = g[0] * (direction_hessian(v[0], c[0]) @ move[0])
    mixed = (move[0] @ c[0] - (v[0] @ c[0]) * (v[0] @ move[0]) / (v[0] @ v[0])) / torch.linalg.vector_norm(v)
    for product in (double_backward, forward_over_reverse):
        dg, dv = product(lambda g, v: (weight(g, v) * c).sum(), (g, v), (torch.zeros_like(g), move))
        assert_close(dv[0], want, rtol=1e-12, atol=1e-13)
        assert_close(dg, mixed.reshape(1, 1), rtol=1e-12, atol=1e-13)


def test_pytorchs_own_has_no_forward_mode(draw, as_function, forward_over_reverse):
    """Why there is one of ours: once this fails, theirs is as good."""
    weight, at = as_function(parametrizations.weight_norm(linear(draw)))
    with pytest.raises(NotImplementedError, match="forward AD with _weight_norm_interface"):
        forward_over_reverse(lambda *at: weight(*at).sum(), tuple(at), tuple(at))


def test_sgd_moves_v_at_right_angles_and_only_lengthens_it(draw):
    layer, x = weight_norm(linear(draw)), draw(16, 4)
    v = stored(layer)[1]
    for _ in range(5):
        layer.zero_grad()
        layer(x).tanh().square().sum().backward()
        assert_close((v * v.grad).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)
        before = v.detach().clone()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        length = torch.linalg.vector_norm(before, dim=1)
        c = torch.linalg.vector_norm(v - before, dim=1) / length
        assert (c > 1e-3).all()
        assert_close(torch.linalg.vector_norm(v, dim=1), (1 + c**2).sqrt() * length, rtol=1e-13, atol=0)


def test_on_whitened_inputs_it_is_batch_norm(draw):
    """With mean 0 and covariance 1 of the batch itself, ``var[v . x] = |v|^2`` exactly."""
    layer, x = weight_norm(linear(draw)), draw(50, 4)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(50)
    g, v = stored(layer)
    want = batch_norm(x @ v.T, None, g.flatten(), layer.bias, eps=0.0)
    assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_registering_keeps_the_weight(draw, dtype):
    weight = draw(7, 5, 3).to(dtype)
    layer = skip_init(nn.Conv1d, 5, 7, 3, dtype=dtype)
    layer.weight.data = weight.clone()
    weight_norm(layer)
    if dtype in (torch.float64, torch.float32):
        assert torch.equal(layer.weight, weight)
    assert_close(layer.weight, weight, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)
    layer.weight = 2 * weight
    assert_close(layer.weight, 2 * weight, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


def test_a_weight_that_was_assigned_does_not_share_its_memory(draw):
    layer, weight = weight_norm(linear(draw)), draw(3, 4)
    layer.weight = weight
    stored(layer)[1].data.zero_()
    assert weight.abs().min() > 0


@pytest.mark.parametrize(
    ("kind", "sizes", "dim"),
    [(nn.Linear, (4, 3), 0), (nn.Conv2d, (4, 6, 3), 0), (nn.ConvTranspose1d, (4, 3, 2), 1)],
    ids=["linear", "conv", "transposed"],
)
def test_state_dicts_go_to_and_come_from_pytorchs_own(draw, kind, sizes, dim):
    """PyTorch's kernel is the oracle of the weight, too."""
    layers = [skip_init(kind, *sizes, dtype=torch.float64) for _ in range(2)]
    for layer in layers:
        layer.weight.data = draw(*layer.weight.shape)
    ours, theirs = weight_norm(layers[0], dim=dim), parametrizations.weight_norm(layers[1], dim=dim)
    for source, target in ((theirs, ours), (ours, theirs)):
        for parameter in source.parameters():
            parameter.data = draw(*parameter.shape)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_close(ours.weight, theirs.weight, rtol=8 * EPS, atol=0)
        assert stored(ours)[0].shape == stored(theirs)[0].shape


def test_autocast_does_not_lower_the_precision_of_the_weight(draw):
    layer = weight_norm(linear(draw).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, layer.weight.float())
        lowered = layer.weight
    assert torch.equal(lowered, layer.weight)


def test_a_filter_of_zeros_is_refused(draw):
    layer = linear(draw)
    layer.weight.data[1] = 0
    with pytest.raises(
        ValueError, match=r"WeightNorm needs every filter to have a direction.*got 1 .* index 1 of dim 0"
    ):
        weight_norm(layer)


def test_a_weight_under_another_reparametrization_is_refused(draw):
    with pytest.raises(
        ValueError, match=r"needs a plain parameter.*got 'weight' of ParametrizedLinear.*weight_norm first"
    ):
        weight_norm(unit_norm(linear(draw)))
