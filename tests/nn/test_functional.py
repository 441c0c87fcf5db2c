"""The shared statistics agree with torch and numpy, obey the identities of theory, and differentiate in every mode."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, jvp
from torch.testing import assert_close

from normlens.nn import functional as nf

SHAPES = [(6, 4), (3, 4, 5), (3, 4, 5, 2), (3, 4, 2, 3, 2)]
exact = partial(assert_close, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("came", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_statistics_are_taken_in_at_least_float32(came, kept):
    x = torch.ones(2, 3, 4, dtype=came)
    assert nf.promote(x).dtype == kept
    assert {m.dtype for m in nf.batch_moments(x)} == {kept}
    assert nf.mean_square(x, (0,)).dtype == kept


def test_cast_returns_the_same_object_when_nothing_is_to_do():
    x = torch.ones(3)
    assert nf.cast(x, x) is x
    assert nf.cast(None, x) is None
    assert nf.cast(x, x.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_the_mean_and_the_biased_variance_of_numpy(draw, shape):
    x = draw(*shape) + 5
    for moments, dims in [
        (nf.batch_moments(x), (0, *range(2, x.dim()))),
        (nf.layer_moments(x), tuple(range(1, x.dim()))),
        (nf.moments(x, (0,)), (0,)),
    ]:
        exact(moments.mean.numpy(), np.mean(x.numpy(), axis=dims, keepdims=True))
        exact(moments.var.numpy(), np.var(x.numpy(), axis=dims, keepdims=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_group_moments_lie_between_those_of_layer_and_instance(draw, shape):
    x = draw(*shape)
    for of_group, of_layer in zip(nf.group_moments(x, 1), nf.layer_moments(x), strict=True):
        assert of_group.shape == (*x.shape[:2], *(1,) * (x.dim() - 2))
        exact(of_group, of_layer.expand_as(of_group))
    for half in (slice(0, 2), slice(2, 4)):
        for of_group, of_layer in zip(nf.group_moments(x, 2), nf.layer_moments(x[:, half]), strict=True):
            exact(of_group[:, half], of_layer.expand_as(of_group[:, half]))
    if x.dim() > 2:
        for of_group, of_instance in zip(nf.group_moments(x, 4), nf.instance_moments(x), strict=True):
            exact(of_group, of_instance)


def test_the_variance_survives_a_mean_of_ten_thousand_standard_deviations(draw):
    x = (draw(4096, 2) + 1e4).float()
    assert_close(nf.batch_moments(x).var.double(), nf.batch_moments(x.double()).var, rtol=1e-4, atol=0)
    one_pass = x.square().mean(0) - x.mean(0).square()
    assert (one_pass.double() / x.double().var(0, correction=0) - 1).abs().min() > 0.1  # what the two passes are for


def test_mean_square_about_the_mean_is_the_variance(draw):
    x = draw(5, 4, 3)
    exact(nf.mean_square(x - x.mean((0, 2), keepdim=True), (0, 2)), nf.batch_moments(x).var)


def test_dims_pool_what_their_layers_pool():
    x = torch.empty(2, 3, 4, 5)
    assert nf.batch_dims(x) == (0, 2, 3)
    assert nf.sample_dims(x) == (1, 2, 3)
    assert nf.spatial_dims(x) == (2, 3)
    assert nf.spatial_dims(x[..., 0, 0]) == ()


def test_a_channel_matrix_has_one_channel_per_row_and_leads_back(draw):
    x = draw(2, 3, 4, 5)
    rows = nf.channel_matrix(x)
    for channel in range(3):
        exact(rows[channel], x[:, channel].reshape(-1))
    exact(nf.from_channel_matrix(rows, x), x)


def test_affine_gives_every_channel_its_own_scale_and_shift(draw):
    x, weight, bias = draw(2, 3, 4, 5), draw(3), draw(3)
    y = nf.affine(x, weight, bias)
    for channel in range(3):
        exact(y[:, channel], weight[channel] * x[:, channel] + bias[channel])
    exact(nf.affine(x, None, None), x)
    exact(nf.affine(x, weight, None) + nf.affine(0 * x, None, bias), y)
    assert nf.affine(x.float(), weight, bias).dtype == torch.float32


def test_centered_values_standardize_by_any_moments_as_the_values_themselves(draw):
    x, weight, bias = draw(5, 3, 4) + 7, draw(3), draw(3)
    by = nf.Moments(draw(3), draw(3).square())
    centered, own = nf.centered_moments(x, (0, 2))
    exact(centered, x - own.mean)
    for w, b in [(weight, bias), (weight, None), (None, bias), (None, None)]:
        want = nf.batch_norm(x, by, w, b)
        exact(nf.affine_standardize(centered, own.mean.flatten(), by, w, b, 1e-5), want)


def test_a_constant_becomes_zero_with_eps_and_nan_without():
    x = torch.full((4, 2), 3.0, dtype=torch.float64)
    exact(nf.batch_norm(x, eps=1e-5), torch.zeros_like(x))
    assert nf.batch_norm(x, eps=0.0).isnan().all()


def test_groups_that_do_not_divide_the_channels_are_refused():
    match = r"groups must divide the number of channels; got 6 channels and groups=4; choose one of \[1, 2, 3, 6\]"
    with pytest.raises(ValueError, match=match):
        nf.group_norm(torch.ones(2, 6, 3), 4)


def test_instance_moments_without_space_are_refused():
    with pytest.raises(ValueError, match=r"at least one spatial dimension.*got \(2, 6\); use batch, layer or group"):
        nf.instance_norm(torch.ones(2, 6))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_references_equal_the_layers_of_torch(draw, shape):
    x, weight, bias = draw(*shape) * 3 + 2, draw(4), draw(4)
    running = nf.Moments(draw(4), draw(4).square())
    F = nn.functional
    exact(nf.batch_norm(x, None, weight, bias), F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5))
    exact(nf.batch_norm(x, running, weight, bias), F.batch_norm(x, *running, weight, bias, False, 0.1, 1e-5))
    exact(nf.group_norm(x, 2, weight, bias), F.group_norm(x, 2, weight, bias, 1e-5))
    exact(nf.layer_norm(x, weight, bias), nf.affine(F.layer_norm(x, x.shape[1:]), weight, bias))
    exact(nf.rms_norm(x, weight), nf.affine(F.rms_norm(x, x.shape[1:], eps=1e-6), weight, None))
    if x.dim() > 2:
        exact(nf.instance_norm(x, weight, bias), F.instance_norm(x, None, None, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_normalized_as_in_float64_where_its_variance_overflows(draw, dtype):
    x = (draw(8, 4, 5, 5) * 500 + 1000).to(dtype)  # variance 250000; float16 ends at 65504
    for norm in [nf.batch_norm, nf.layer_norm, nf.instance_norm, nf.rms_norm, partial(nf.group_norm, groups=2)]:
        y = norm(x)
        assert y.dtype == dtype
        assert_close(y.double(), norm(x.double()), rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


REFERENCES = {
    "batch": lambda x, w, b: nf.batch_norm(x, None, w, b),
    "group": lambda x, w, b: nf.group_norm(x, 2, w, b),
    "instance": nf.instance_norm,
    "layer": nf.layer_norm,
    "rms": lambda x, w, b: nf.rms_norm(x, w) + 0 * nf.per_channel(b, x),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_references_have_one_hessian_in_every_derivative_mode(draw, double_backward, central_difference, name):
    at, v, readout = (draw(3, 4, 3), draw(4), draw(4)), (draw(3, 4, 3), draw(4), draw(4)), draw(3, 4, 3)

    def loss(x, w, b):
        return (torch.tanh(REFERENCES[name](x, w, b)) * readout).sum()

    def directional(*at):
        return jvp(loss, at, v)[1]

    def batched():
        leaves = [t.clone().requires_grad_() for t in at]
        gradient = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        return [
            p[1]
            for p in torch.autograd.grad(gradient, leaves, [torch.stack([0 * t, t]) for t in v], is_grads_batched=True)
        ]

    reference = double_backward(loss, at, v)
    assert_close(reference, central_difference(loss, at, v), rtol=1e-7, atol=1e-7)
    every = (0, 1, 2)
    exact(list(jvp(grad(loss, every), at, v)[1]), reference)
    exact(list(jvp(jacrev(loss, every), at, v)[1]), reference)
    exact(list(grad(directional, every)(*at)), reference)
    exact(batched(), reference)
    exact(jvp(directional, at, v)[1], sum((h * u).sum() for h, u in zip(reference, v, strict=True)))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_in_each_group_channel_means_average_to_zero_and_second_moments_to_one(draw, groups):
    x = draw(6, 8, 5, 4) * torch.arange(1, 9)[:, None, None] + draw(1, 8, 1, 1)
    mean, var = nf.batch_moments(nf.group_norm(x, groups, eps=0.0))
    zero = torch.zeros(groups, dtype=torch.float64)
    exact(mean.reshape(groups, -1).mean(1), zero)
    exact((var + mean.square()).reshape(groups, -1).mean(1), zero + 1)


def test_layer_norm_can_leave_a_channel_constant_that_batch_norm_standardizes():
    x = torch.tensor([[3.0, 1.0], [5.0, 1.0]], dtype=torch.float64)
    exact(nf.layer_norm(x, eps=0.0), torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64))
    mean, var = nf.batch_moments(nf.layer_norm(x, eps=0.0))
    exact(
        mean.flatten().abs().mean(), torch.tensor(1.0, dtype=torch.float64)
    )  # the statistical difference of the means
    exact((var.flatten().sqrt() - 1).abs().mean(), torch.tensor(1.0, dtype=torch.float64))  # and of the deviations
    exact(nf.batch_norm(x, eps=0.0)[:, 0], torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert nf.batch_norm(x, eps=0.0)[:, 1].isnan().all()  # 0 / 0
    exact(nf.batch_norm(x, eps=1e-5)[:, 1], torch.zeros(2, dtype=torch.float64))


def test_layer_norm_of_1_2_3_6_is_the_vector_worked_out_by_hand():
    y = nf.layer_norm(torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64), eps=0.0)
    expected = torch.tensor([[-1.0690449676, -0.5345224838, 0.0, 1.6035674515]], dtype=torch.float64)
    assert_close(y, expected, rtol=0, atol=1e-10)


def test_batch_norm_backward_removes_the_mean_and_the_output_from_the_gradient(draw):
    m, gamma = 16, 1.7
    y, g = draw(m, 1).requires_grad_(), draw(m, 1)
    (backward,) = torch.autograd.grad(nf.batch_norm(y, None, torch.tensor([gamma]), eps=0.0), y, g)
    var = y.var(correction=0).detach()
    standard = (y.detach() - y.detach().mean()) / var.sqrt()
    energy = g.square().sum() - g.sum().square() / m - (standard * g).sum().square() / m
    exact(backward.square().sum(), torch.tensor(gamma).double() ** 2 / var * energy)


def test_batch_norm_backward_of_1_2_3_4_is_the_vector_worked_out_by_hand():
    y = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    (backward,) = torch.autograd.grad(nf.batch_norm(y, eps=0.0), y, g)
    expected = torch.tensor([0.2683, -0.3578, -0.0894, 0.1789], dtype=torch.float64)
    assert_close(backward.flatten(), expected, rtol=0, atol=5e-5)
