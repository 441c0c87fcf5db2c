"""One function for the moments of components and what they standardize: the composition, in every derivative mode."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacrev, jvp, vmap
from torch.testing import assert_close

from normlens.nn import em_mixture as em
from normlens.nn.mixture_standardization import standardize_by_components


def composition(x, r, eps):
    return em.standardize_by_mixture(x, r, em.component_moments(x, r), eps)


def posterior(draw, groups, components, points, *, dead=False):
    r = draw(groups, components, points).softmax(1)
    if dead:
        r = torch.cat([r, torch.zeros_like(r[:, :1])], 1)
    return r


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 9), (5, 1, 7)])
def test_it_is_the_composition_in_every_derivative_mode(draw, double_backward, forward_over_reverse, shape, dead, eps):
    x, v, readout = draw(*shape), draw(*shape), draw(*shape)
    r = posterior(draw, shape[0], 3, shape[2], dead=dead)
    ours, plain = (
        lambda x, f=f: (torch.tanh(f(x, r, eps)) * readout).sum()
        for f in (lambda *a: standardize_by_components(*a)[0], composition)
    )
    tight = {"rtol": 1e-11, "atol": 1e-11}
    assert_close(ours(x), plain(x), **tight)
    first = torch.autograd.grad(ours(leaf := x.clone().requires_grad_()), leaf)[0]
    assert_close(first, grad(plain)(x), **tight)
    expected = double_backward(plain, (x,), (v,))[0]
    for product in (double_backward, forward_over_reverse):
        assert_close(product(ours, (x,), (v,))[0], expected, **tight)
    assert_close(jvp(jacrev(ours), (x,), (v,))[1], expected, **tight)
    assert_close(grad(lambda x: jvp(ours, (x,), (v,))[1])(x), expected, **tight)
    assert_close(jvp(lambda x: jvp(ours, (x,), (v,))[1], (x,), (v,))[1], (expected * v).sum(), **tight)
    assert_close(vmap(grad(ours))(torch.stack([x, v])), torch.stack([grad(plain)(x), grad(plain)(v)]), **tight)


def test_the_moments_are_handed_out_as_constants(draw):
    x, r = draw(1, 3, 8).requires_grad_(), posterior(draw, 1, 2, 8)
    for found in (standardize_by_components(x, r, 0.0)[1], standardize_by_components(x.detach(), r, 0.0)[1]):
        assert not any(part.requires_grad for part in found)
        for part, expected in zip(found, em.component_moments(x.detach(), r), strict=True):
            assert_close(part, expected, rtol=1e-14, atol=1e-14)
