"""Spectral normalization is PyTorch's, by a start of our own; and what its second derivative leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, skip_init
from torch.testing import assert_close

from normlens.nn.parametrize import spectral_norm

EPS = torch.finfo(torch.float64).eps


def linear(weight, seed=0, **settings):
    layer = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight.clone()
    return spectral_norm(layer, seed=seed, **settings)


def known():
    return torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)


def test_the_matrix_3_0_4_5_is_divided_by_root_45():
    layer = linear(known(), n_power_iterations=30)
    assert_close(layer.weight.detach(), known() / math.sqrt(45), rtol=1e-12, atol=0)


def test_convolutions_are_matrices_of_filters_and_transposed_ones_by_their_outputs(draw):
    for kind, axis in ((nn.Conv2d, 0), (nn.ConvTranspose2d, 1)):
        layer = skip_init(kind, 4, 3, 2, dtype=torch.float64)
        layer.weight.data = draw(*layer.weight.shape)
        want = layer.weight.detach() / torch.linalg.matrix_norm(layer.weight.movedim(axis, 0).flatten(1), 2)
        assert_close(
            spectral_norm(layer, n_power_iterations=400).weight.detach(), want.detach(), rtol=1e-10, atol=1e-12
        )


def test_it_is_pytorchs_own_from_the_same_start(draw):
    weight = draw(4, 6)
    ours, theirs = linear(weight).eval(), linear(draw(4, 6))
    plain = skip_init(nn.Linear, 6, 4, bias=False, dtype=torch.float64)
    plain.weight.data = weight.clone()
    theirs = parametrizations.spectral_norm(plain).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours.weight, theirs.weight)


def test_the_seed_alone_decides_the_start(draw):
    weight = draw(4, 6)
    first, again, other = (linear(weight, seed).state_dict()["parametrizations.weight.0._u"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_first_derivative_is_true_when_converged_and_the_second_leaves_out_the_turning_vectors(as_function):
    layer = linear(known(), n_power_iterations=60)
    layer.weight  # noqa: B018 - one use in train mode takes the iterations
    weight, (at,) = as_function(layer.eval())
    readout = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)

    def ours(v):
        return (weight(v) * readout).sum()

    def true(v):
        return (v * readout).sum() / torch.linalg.eigvalsh(v.T @ v)[-1].sqrt()

    assert_close(torch.func.grad(ours)(at), torch.func.grad(true)(at), rtol=1e-10, atol=1e-12)
    got, want = torch.func.hessian(ours)(at).reshape(4, 4), torch.func.hessian(true)(at).reshape(4, 4)
    assert torch.linalg.matrix_norm(got - want) > 0.01 * torch.linalg.matrix_norm(want)


def test_a_missing_parameter_is_refused():
    with pytest.raises(ValueError, match="no parameter or buffer with name 'filter'"):
        spectral_norm(nn.Linear(2, 2, device="meta"), name="filter")
