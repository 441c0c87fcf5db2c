"""Quaternion batch normalization whitens for real, or keeps directions."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.weighted.hamilton import hamilton_product
from normlens.nn.weighted.quaternion_batch_norm import QuaternionBatchNorm


def norm(features=8, **settings):
    return QuaternionBatchNorm(features, dtype=torch.float64, **settings)


def mixed(draw, n=200, quaternions=2, *space):
    """Correlated components of unlike scale and mean: ``(n, 4 quaternions, *space)``."""
    x = draw(n, 4, quaternions, *space)
    mixing = draw(quaternions, 4, 4)
    return (torch.einsum("qab,nbq...->naq...", mixing, x) + 3 * draw(4, quaternions, *(1 for _ in space))).flatten(1, 2)


def covariance(y, quaternions=2):
    components = y.reshape(len(y), 4, quaternions, -1).permute(2, 1, 0, 3).flatten(2)
    return torch.stack([torch.cov(c, correction=0) for c in components])


@pytest.mark.parametrize("space", [(), (3,), (2, 3)])
def test_whitened_components_have_the_identity_for_a_covariance(draw, space):
    y = norm(eps=0, affine=False)(mixed(draw, 200, 2, *space))
    assert_close(covariance(y), torch.eye(4, dtype=y.dtype).expand(2, 4, 4), rtol=1e-11, atol=1e-11)
    assert_close(y.transpose(0, 1).flatten(1).mean(1), torch.zeros(8, dtype=y.dtype), rtol=0, atol=1e-13)


def test_variances_of_four_and_one_come_out_as_one(draw):
    """The published code multiplies by its factor instead of the inverse: 16 instead of 1."""
    x = norm(4, eps=0, affine=False)(draw(500, 4)) * torch.tensor([2.0, 1, 1, 1], dtype=torch.float64)
    y = norm(4, eps=0, affine=False)(x)
    assert_close(covariance(y, 1)[0].diagonal(), torch.ones(4, dtype=y.dtype), rtol=1e-12, atol=0)


def test_it_starts_with_a_mean_square_modulus_of_one_in_both_modes(draw):
    for mode in ("whiten", "scalar"):
        y = norm(eps=0, mode=mode)(mixed(draw))
        modulus = y.reshape(200, 4, 2).square().sum(1).mean(0)
        assert_close(modulus, torch.ones(2, dtype=y.dtype), rtol=1e-12, atol=0)


def test_eps_enters_the_covariance(draw):
    x, eps = mixed(draw), 0.5
    before, after = covariance(x), covariance(norm(eps=eps, affine=False)(x))
    for v, w in zip(before, after, strict=True):
        factor = torch.linalg.cholesky(v + eps * torch.eye(4, dtype=v.dtype))
        inverse = torch.linalg.inv(factor)
        assert_close(w, inverse @ v @ inverse.T, rtol=1e-11, atol=1e-11)


def test_the_gain_is_a_symmetric_matrix_of_ten_numbers_row_by_row(draw):
    layer, plain, x = norm(4, eps=0), norm(4, eps=0, affine=False), mixed(draw, 50, 1)
    layer.weight.data, layer.bias.data = torch.arange(1.0, 11, dtype=torch.float64)[None], draw(4)
    gain = torch.tensor([[1.0, 2, 4, 7], [2, 3, 5, 8], [4, 5, 6, 9], [7, 8, 9, 10]], dtype=torch.float64)
    assert_close(layer(x), plain(x) @ gain + layer.bias, rtol=1e-12, atol=1e-12)


def rotate(q, x):
    return hamilton_product(q.repeat_interleave(x.shape[1] // 4).expand_as(x), x, dim=1)


def test_the_scalar_mode_commutes_with_a_unit_quaternion_and_whitening_does_not(draw):
    x, q = mixed(draw), torch.nn.functional.normalize(draw(4), dim=0)
    layer = norm(mode="scalar")
    layer.weight.data = draw(2)
    assert_close(layer(rotate(q, x)), rotate(q, layer(x)), rtol=1e-13, atol=1e-13)
    whiten = norm()
    assert float((whiten(rotate(q, x)) - rotate(q, whiten(x))).detach().abs().max()) > 0.1


def test_on_components_that_are_uncorrelated_and_alike_scalar_mode_is_batch_norm_by_half(draw):
    x = norm(eps=0, affine=False)(mixed(draw)) * 3 + 1
    assert_close(norm(eps=0, mode="scalar")(x), BatchNorm(8, eps=0, dtype=x.dtype)(x) / 2, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["whiten", "scalar"])
def test_running_statistics_average_the_unbiased_ones_of_the_batches(draw, mode):
    layer, batches = norm(mode=mode, momentum=None), [mixed(draw, 30) for _ in range(3)]
    for x in batches:
        layer(x)
    covariances = [covariance(x) * 30 / 29 for x in batches]
    wanted = torch.stack(covariances).mean(0)
    if mode == "scalar":
        assert_close(layer.running_var, wanted.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12, atol=0)
    else:
        assert_close(layer.running_cov, wanted, rtol=1e-11, atol=1e-12)
    assert_close(layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0), rtol=1e-12, atol=1e-13)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("mode", ["whiten", "scalar"])
def test_eval_mode_normalizes_by_the_running_statistics(draw, mode):
    layer, x = norm(mode=mode, momentum=1.0, eps=0), mixed(draw, 30)
    trained = layer(x)
    stored = layer.eval()(x[:1])
    # remembered is the unbiased spread, 30 / 29 of the batch's
    assert_close(stored, trained[:1] * (29 / 30) ** 0.5, rtol=1e-11, atol=1e-12)
    layer.reset_running_stats()
    assert_close(layer(x), (0.5**0.5) * x if mode == "whiten" else x / 2**0.5, rtol=1e-14, atol=1e-14)


def test_without_running_statistics_eval_mode_takes_the_batch(draw):
    layer, x = norm(track_running_stats=False), mixed(draw)
    assert torch.equal(layer(x), layer.eval()(x))
    assert list(layer.buffers()) == []


@pytest.mark.parametrize(("mode", "least"), [("whiten", 5), ("scalar", 2)])
def test_too_few_values_for_the_statistics_are_refused_in_train_mode_alone(draw, mode, least):
    layer = norm(mode=mode)
    few = draw(least - 1, 8)
    with pytest.raises(ValueError, match=rf"needs at least {least} values per channel; got \({least - 1}, 8\).*larger"):
        layer(few)
    assert_close(layer(draw(least, 8)).mean(0), torch.zeros(8, dtype=few.dtype), rtol=0, atol=1e-12)
    assert layer.eval()(few).shape == few.shape


@pytest.mark.parametrize("mode", ["whiten", "scalar"])
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_are_exact_in_both_modes(draw, mode, training):
    layer, x = norm(4, mode=mode).train(training), mixed(draw, 6, 1)
    at = [t.detach().clone().requires_grad_() for t in (x, *layer.parameters())]
    names = list(dict(layer.named_parameters()))

    def call(x, *parameters):
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        return torch.func.functional_call(layer, {**dict(zip(names, parameters, strict=True)), **buffers}, (x,))

    assert torch.autograd.gradcheck(call, at)
    assert torch.autograd.gradgradcheck(call, at, [draw(6, 4).requires_grad_()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 6}, r"num_features that four divides, the blocks r, i, j, k; got 6; count all four components"),
        ({"features": 0}, r"QuaternionBatchNorm needs num_features of at least 1; got 0"),
        ({"mode": "zca"}, r"mode to be 'whiten' or 'scalar'; got 'zca'; choose one"),
        ({"eps": -1.0}, r"eps of at least 0; got -1.0; use 1e-4"),
    ],
)
def test_settings_outside_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        norm(**settings)
