"""Decorrelated batch norm whitens by the symmetric root, and its derivatives survive equal eigenvalues."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.func import grad, hessian, jvp
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.decorrelated_batch_norm import DecorrelatedBatchNorm, default_group_size, inverse_root
from normlens.nn.functional import channel_matrix

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
near = partial(assert_close, rtol=1e-10, atol=1e-10)
eye = partial(torch.eye, dtype=torch.float64)


def layer_of(channels, eps=1e-5, **settings):
    return DecorrelatedBatchNorm(channels, eps=eps, dtype=torch.float64, **settings)


def covariance(x):
    """The biased covariance of channels, by NumPy."""
    return torch.from_numpy(np.cov(channel_matrix(x).detach().numpy(), bias=True))


def mixed(draw, channels, *, count=40, spread=4.0):
    """Correlated channels of unlike scale, (count, channels, 3), away from zero."""
    turn = torch.linalg.qr(draw(channels, channels)).Q
    scales = torch.logspace(0, math.log10(spread), channels, dtype=torch.float64)
    return torch.einsum("ij,njl->nil", turn * scales, draw(count, channels, 3)) + 2


def rotation(draw, size):
    return torch.linalg.qr(draw(size, size)).Q


def white(size=3):
    """``size`` channels of mean 0 whose covariance is exactly the identity: the rows of a Hadamard matrix."""
    return torch.from_numpy(scipy.linalg.hadamard(8)[1 : size + 1].T.copy()).double()


def by_eigenvectors(x):
    """Whitening by the eigenvectors themselves (PCA)."""
    values, basis = torch.linalg.eigh(covariance(x))
    return (x - x.mean(0)) @ basis / values.sqrt()


def symmetric(draw, size=3):
    matrix = draw(size, size)
    return matrix + matrix.T


def test_zca_of_2_1_1_2_is_the_matrix_worked_out_by_hand():
    matrix = inverse_root(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    a, b = 0.7886751346, -0.2113248654  # (1/sqrt(3) + 1) / 2 and (1/sqrt(3) - 1) / 2
    assert_close(matrix.tolist(), [[a, b], [b, a]], rtol=0, atol=5e-11)
    exact(matrix[0, 0].item(), (1 / math.sqrt(3) + 1) / 2)


def test_the_matrix_is_the_inverse_of_the_root_by_scipy(draw):
    factor = draw(5, 5)
    cov = factor @ factor.T
    want = np.linalg.inv(scipy.linalg.sqrtm(cov.numpy()))
    assert_close(inverse_root(cov), torch.from_numpy(want), rtol=1e-9, atol=1e-9)


def test_output_is_white_but_for_eps(draw):
    x, eps = mixed(draw, 4), 0.1
    cov = covariance(x)
    matrix = inverse_root(cov + eps * eye(4))
    y = layer_of(4, eps=eps)(x)
    exact(covariance(y), eye(4) - eps * matrix @ matrix)
    exact(covariance(layer_of(4, eps=0.0)(x)), eye(4))
    exact(y.mean((0, 2)), torch.zeros(4, dtype=torch.float64))


def test_each_group_has_statistics_of_its_own(draw):
    x = torch.cat([mixed(draw, 2), 10 * mixed(draw, 2)], 1)
    y = layer_of(4, group_size=2, eps=0.0)(x)
    exact(torch.cat([layer_of(2, eps=0.0)(half) for half in x.chunk(2, 1)], 1), y)
    exact(covariance(y).diagonal(), torch.ones(4, dtype=torch.float64))
    assert covariance(y)[:2, 2:].abs().max() > 1e-3  # channels of two groups stay as correlated as they are


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_groups_of_one_are_batch_norm(draw, running):
    ours, theirs = layer_of(3, group_size=1, running=running), BatchNorm(3, dtype=torch.float64)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(3)
    for _ in range(3):
        x, g = draw(5, 3, 2) * 3 + 2, draw(5, 3, 2)
        results = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
        exact(*results)
    exact(ours.running_mean, theirs.running_mean)
    if running == "covariance":
        exact(ours.running_cov.flatten(), theirs.running_var)
        exact(ours.eval()(x), theirs.eval()(x))


def test_of_all_whitenings_it_moves_the_data_least(draw):
    x = mixed(draw, 3)
    centered = x - x.mean((0, 2), keepdim=True)
    y = layer_of(3, eps=0.0)(x)
    least = (y - centered).square().mean()
    for _ in range(20):
        turned = torch.einsum("ij,njl->nil", rotation(draw, 3), y)
        exact(covariance(turned), eye(3))
        assert (turned - centered).square().mean() > least


def test_turning_the_input_turns_the_output(draw):
    x, turn, layer = mixed(draw, 4), rotation(draw, 4), layer_of(4)
    near(layer(torch.einsum("ij,njl->nil", turn, x)), torch.einsum("ij,njl->nil", turn, layer(x)))


def test_near_equal_eigenvalues_do_not_swap_axes(draw):
    x, small = white(), 1e-7
    for _ in range(10):
        moved = x + small * draw(8, 3)
        assert (layer_of(3)(moved) - layer_of(3)(x)).abs().max() < 30 * small
        assert (by_eigenvectors(moved) - by_eigenvectors(x)).abs().max() > 0.1  # what it is spared


def test_gradient_is_the_divided_difference_of_the_root(draw):
    cov = covariance(mixed(draw, 4)).requires_grad_()
    g = symmetric(draw, 4)
    (got,) = torch.autograd.grad(inverse_root(cov), cov, g)
    values, basis = torch.linalg.eigh(cov.detach())
    s = values.sqrt()
    divided = -1 / (s[:, None] * s * (s[:, None] + s))
    exact(got, basis @ (divided * (basis.T @ g @ basis)) @ basis.T)


def test_three_derivatives_at_the_identity_are_those_of_the_binomial_series(draw):
    h, b = symmetric(draw), symmetric(draw)

    def along(t):
        return (b * inverse_root(eye(3) + t * h)).sum()

    zero = torch.zeros((), dtype=torch.float64)
    derivative = along
    for coefficient, power in ((-1 / 2, h), (3 / 4, h @ h), (-15 / 8, h @ h @ h)):
        derivative = grad(derivative)
        exact(derivative(zero), coefficient * (b * power).sum())


def test_three_derivatives_away_from_the_identity_are_those_of_a_complex_contour(draw):
    """Cauchy's formula for the derivatives of t -> f(A + tH), with SciPy's roots of complex matrices."""
    cov, h, b = covariance(mixed(draw, 3)) + eye(3), 0.1 * symmetric(draw), symmetric(draw)
    circle = np.exp(2j * np.pi * np.arange(64) / 64)
    roots = [np.linalg.inv(scipy.linalg.sqrtm(cov.numpy() + z * h.numpy())) for z in circle]
    values = np.array([(b.numpy() * root).sum() for root in roots])
    derivative = at = lambda t: (b * inverse_root(cov + t * h)).sum()
    for order in (1, 2, 3):
        derivative = grad(derivative)
        want = math.factorial(order) * (values * circle**-order).mean().real
        near(derivative(torch.zeros((), dtype=torch.float64)).item(), want)
    assert math.isclose(at(torch.ones(())).item(), values[0].real, rel_tol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_first_and_second_derivatives_are_right_at_equal_eigenvalues(draw, eps):
    layer, x = layer_of(3, eps=eps, track_running_stats=False), white().requires_grad_()
    exact(covariance(x), eye(3))
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x, draw(8, 3).requires_grad_())


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch, of its own tracing
def test_every_derivative_mode_agrees_at_equal_eigenvalues(draw, double_backward, forward_over_reverse):
    layer, x, v, readout = layer_of(3, track_running_stats=False), white(), draw(8, 3), draw(8, 3)

    def loss(x):
        return (torch.tanh(layer(x)) * readout).sum()

    (want,) = double_backward(loss, (x,), (v,))
    assert want.norm() > 0.1
    exact(forward_over_reverse(loss, (x,), (v,))[0], want)
    exact(torch.einsum("ijkl,kl->ij", hessian(loss)(x), v), want)
    exact(grad(lambda x: jvp(loss, (x,), (v,))[1])(x), want)
    exact(torch.func.linearize(grad(loss), x)[1](v), want)


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_eval_mode_uses_the_average_covariance_or_the_average_matrix(draw, running):
    layer, covs, matrices, means = layer_of(4, running=running, momentum=None), [], [], []
    for _ in range(3):
        x = mixed(draw, 4)
        layer(x)
        covs.append(covariance(x) * 120 / 119)
        matrices.append(inverse_root(covariance(x) + 1e-5 * eye(4)))
        means.append(x.mean((0, 2)))
    cov, matrix, mean = (sum(values) / 3 for values in (covs, matrices, means))
    matrix = matrix if running == "matrix" else inverse_root(cov + 1e-5 * eye(4))
    if running == "matrix":
        exact(layer.running_matrix[0], matrix)
    else:
        exact(layer.running_cov[0], cov)
    exact(layer.eval()(x), torch.einsum("ij,njl->nil", matrix, x - mean[:, None]))


def test_a_momentum_weighs_the_newest_batch(draw):
    layer, x = layer_of(3, momentum=0.25), mixed(draw, 3)
    layer(x)
    exact(layer.running_mean, 0.25 * x.mean((0, 2)))
    exact(layer.running_cov[0], 0.75 * eye(3) + 0.25 * covariance(x) * 120 / 119)


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_reset_makes_it_new(draw, running):
    layer, x = layer_of(4, group_size=2, running=running), mixed(draw, 4)
    layer(x)
    layer.weight.data += 1
    layer.reset_parameters()
    fresh = layer_of(4, group_size=2, running=running)
    for key, tensor in fresh.state_dict().items():
        assert torch.equal(layer.state_dict()[key], tensor), key
    exact(layer.eval()(x), x / (math.sqrt(1 + 1e-5) if running == "covariance" else 1))


def test_scale_and_shift_come_after_the_whitening(draw):
    layer, x = layer_of(4, group_size=2), mixed(draw, 4)
    plain = layer(x)
    layer.weight.data, layer.bias.data = draw(4), draw(4)
    exact(layer(x), plain * layer.weight[:, None] + layer.bias[:, None])
    assert layer(x).is_contiguous()


def test_duplicate_channels_far_from_zero_stay_finite_in_float32_and_are_scaled_alike(draw):
    signal = 30 * draw(64, 1, dtype=torch.float32) + 100
    x = signal.repeat(1, 3).requires_grad_()
    y = DecorrelatedBatchNorm(3)(x)
    assert_close(y.detach(), y.detach()[:, :1].expand(-1, 3), rtol=0, atol=2e-2)
    assert_close(y.detach().double().square().sum(1).mean().item(), 1.0, rtol=2e-3, atol=0)  # one direction
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.abs().max() < 1


@pytest.mark.parametrize("shape", [(4, 4), (1, 4), (2, 4, 2)])
def test_a_batch_that_makes_the_covariance_singular_is_refused_on_batch_statistics_only(shape):
    match = r"DecorrelatedBatchNorm\(4\) needs more values per channel than the 4 channels .*; got \(.*; use a larger"
    for layer in (layer_of(4), layer_of(4, track_running_stats=False).eval()):
        with pytest.raises(ValueError, match=match):
            layer(torch.ones(shape, dtype=torch.float64))
    layer = layer_of(4, eps=0.0)
    exact(layer.eval()(torch.ones(shape, dtype=torch.float64)), torch.ones(shape, dtype=torch.float64))
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (4, 4), (16, 16), (24, 12), (64, 16), (17, 1), (50, 10)])
def test_default_groups_are_the_largest_up_to_16(channels, size):
    assert default_group_size(channels, limit=16) == size == DecorrelatedBatchNorm(channels).group_size


@pytest.mark.parametrize("size", [4, 0, -2, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(size):
    match = rf"divides num_features; got num_features=6, group_size={size}; choose one of \[1, 2, 3, 6\]"
    with pytest.raises(ValueError, match=match):
        DecorrelatedBatchNorm(6, group_size=size)


def test_an_unknown_kind_of_running_statistics_is_refused():
    with pytest.raises(ValueError, match="needs running to be 'covariance' or 'matrix'; got 'mean'; choose"):
        DecorrelatedBatchNorm(6, running="mean")
