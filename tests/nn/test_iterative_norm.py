"""Iterative norm follows Newton's iteration: its gains, its limit in full whitening, its start in pure scaling."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.decorrelated_batch_norm import DecorrelatedBatchNorm, inverse_root
from normlens.nn.functional import channel_matrix
from normlens.nn.iterative_norm import IterativeNorm, newton_inverse_root

exact = partial(assert_close, rtol=1e-12, atol=1e-12)
eye = partial(torch.eye, dtype=torch.float64)


def layer_of(channels, **settings):
    return IterativeNorm(channels, dtype=torch.float64, **settings)


def diagonal(*values):
    return torch.tensor(values, dtype=torch.float64).diag()


def covariance(x):
    return torch.from_numpy(np.cov(channel_matrix(x).detach().numpy(), bias=True))


def mixed(draw, channels, count=40):
    """Correlated channels of unlike scale, (count, channels, 3), away from zero."""
    return torch.einsum("ij,njl->nil", draw(channels, channels), draw(count, channels, 3)) + 2


def literal(matrix, steps):
    """The paper's recursion as it stands, for one matrix."""
    p = eye(len(matrix))
    for _ in range(steps):
        p = (3 * p - p @ p @ p @ matrix) / 2
    return p


def test_an_eigenvalue_of_one_half_climbs_to_the_root_of_two_as_worked_out_by_hand():
    for steps, want in enumerate([1.0, 1.25, 1.38671875, 1.413416937, 1.4142128894, 1.4142135624]):
        assert_close(newton_inverse_root(diagonal(0.5), steps).item(), want, rtol=0, atol=5e-11)


@pytest.mark.parametrize(("share", "gain"), [(0.01, 0.65871897), (0.001, 0.23655581)])
def test_gains_at_five_steps_are_those_worked_out_by_hand(share, gain):
    assert_close(math.sqrt(share) * newton_inverse_root(diagonal(share), 5).item(), gain, rtol=0, atol=5e-9)


def test_variances_4_and_1_give_the_matrix_worked_out_by_hand():
    matrix = layer_of(2, eps=0.0).whitening_matrix(diagonal(4, 1)[None])
    assert_close(matrix[0].tolist(), [[0.5, 0.0], [0.0, 0.9999834432]], rtol=0, atol=5e-11)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 7])
def test_the_matrix_is_that_of_the_papers_recursion(draw, steps):
    cov = covariance(mixed(draw, 4))
    sigma = cov + 1e-3 * eye(4)
    want = literal(sigma / sigma.trace(), steps) / sigma.trace().sqrt()
    exact(layer_of(4, num_iterations=steps, eps=1e-3).whitening_matrix(cov[None])[0], want)


def test_each_eigenvalue_is_mapped_alone_and_no_gain_exceeds_one(draw):
    x = mixed(draw, 5)
    cov = covariance(x)
    shares = torch.linalg.eigvalsh(cov) / cov.trace()
    p = torch.ones(5, dtype=torch.float64)
    for _ in range(5):
        p = (3 * p - shares * p**3) / 2
    gains = shares.sqrt() * p
    assert gains.max() <= 1
    spectrum = torch.linalg.eigvalsh(covariance(layer_of(5, eps=0.0)(x)))
    exact(spectrum, gains.square().sort().values)


def test_without_steps_a_group_is_divided_by_the_root_of_its_trace(draw):
    x = mixed(draw, 4)
    centered, cov = x - x.mean((0, 2), keepdim=True), covariance(x)
    trace = (cov + 1e-5 * eye(4)).diagonal().reshape(2, 2).sum(1).repeat_interleave(2)
    exact(layer_of(4, group_size=2, num_iterations=0)(x), centered / trace.sqrt()[:, None])


def test_many_steps_are_full_whitening_in_values_and_gradients(draw):
    x, g, results = mixed(draw, 4), draw(40, 4, 3), []
    layers = layer_of(4, num_iterations=40), DecorrelatedBatchNorm(4, eps=1e-5, dtype=torch.float64)
    for layer in layers:
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)])
    assert_close(*results, rtol=1e-9, atol=1e-9)


def test_rounding_does_not_grow_with_the_steps_where_the_literal_recursion_diverges(draw):
    turn = torch.linalg.qr(draw(6, 6)).Q
    cov = turn @ torch.logspace(-4, 0, 6, dtype=torch.float64).diag() @ turn.T
    sigma = cov / cov.trace()
    assert_close(newton_inverse_root(sigma, 60), inverse_root(sigma), rtol=1e-9, atol=1e-9)
    assert not literal(sigma, 60).isfinite().all()


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_groups_of_one_are_batch_norm_whatever_the_steps(draw, steps):
    ours = layer_of(3, group_size=1, num_iterations=steps, running="covariance")
    theirs = BatchNorm(3, dtype=torch.float64)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(3)
    x, g, results = draw(5, 3, 2) * 3 + 2, draw(5, 3, 2), []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), layer.eval()(x)])
    exact(*results)
    exact(ours.running_cov.flatten(), theirs.running_var)


def test_turning_the_input_turns_the_output(draw):
    x, layer, turn = mixed(draw, 4), layer_of(4), torch.linalg.qr(draw(4, 4)).Q
    exact(layer(torch.einsum("ij,njl->nil", turn, x)), torch.einsum("ij,njl->nil", turn, layer(x)))


def test_each_group_has_statistics_of_its_own(draw):
    x = torch.cat([mixed(draw, 2), 10 * mixed(draw, 2)], 1)
    exact(layer_of(4, group_size=2)(x), torch.cat([layer_of(2)(half) for half in x.chunk(2, 1)], 1))


def test_the_average_matrix_is_not_the_matrix_of_the_average_covariance(draw):
    kinds = [layer_of(3, running=kind, momentum=None) for kind in ("matrix", "covariance")]
    batches = [scale * mixed(draw, 3) for scale in (1, 5)]
    for layer in kinds:
        for x in batches:
            layer(x)
        layer.eval()
    by_matrix, by_covariance = kinds
    matrices = [by_matrix.whitening_matrix(covariance(x)[None]) for x in batches]
    exact(by_matrix.running_matrix, (matrices[0] + matrices[1]) / 2)
    exact(by_covariance.running_cov[0], sum(covariance(x) * 120 / 119 for x in batches) / 2)
    x, mean = batches[0], by_matrix.running_mean[:, None]
    exact(by_matrix(x), torch.einsum("ij,njl->nil", by_matrix.running_matrix[0], x - mean))
    want = by_covariance.whitening_matrix(by_covariance.running_cov)[0]
    exact(by_covariance(x), torch.einsum("ij,njl->nil", want, x - mean))
    assert (by_matrix(x) - by_covariance(x)).abs().max() > 0.1


def test_a_batch_smaller_than_a_group_is_whitened_where_it_has_variance(draw):
    x = draw(3, 4)
    y = layer_of(4, eps=0.0, num_iterations=15)(x)
    spectrum = torch.linalg.eigvalsh(covariance(y))
    assert_close(spectrum, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1)])
def test_one_value_per_channel_is_refused_on_batch_statistics_only(shape):
    match = r"IterativeNorm\(4\) needs more than one value per channel.*; got .*, 1 per channel; use a larger batch"
    for layer in (layer_of(4), layer_of(4, track_running_stats=False).eval()):
        with pytest.raises(ValueError, match=match):
            layer(torch.ones(shape, dtype=torch.float64))
    x = torch.ones(shape, dtype=torch.float64)
    exact(layer_of(4).eval()(x), x)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="num_iterations of at least 0; got -1; use 5"):
        IterativeNorm(4, num_iterations=-1)


@pytest.mark.parametrize(("channels", "size"), [(4, 4), (64, 64), (96, 48), (128, 64), (67, 1)])
def test_default_groups_are_the_largest_up_to_64(channels, size):
    assert IterativeNorm(channels).group_size == size


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"IterativeNorm needs a group_size that divides .*; choose one of \[1, 2,"):
        IterativeNorm(6, group_size=4)
