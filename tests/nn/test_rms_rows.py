"""Rows over their root mean square by the kernel of layer norm: the plain formula, in every derivative mode."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacrev, jvp, vmap
from torch.testing import assert_close

from normlens.nn.rms_rows import has_kernel, rms_rows

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def plain(x, w, eps):
    return w * x / (x.square().mean(1, keepdim=True) + eps).sqrt()


def losses(readout, eps):
    return [lambda x, w, f=f: (torch.tanh(f(x, w, eps)) * readout).sum() for f in (rms_rows, plain)]


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_value_and_gradient_are_those_of_the_formula(draw, eps, offset):
    x, w, readout = draw(5, 7) + offset, draw(7), draw(5, 7)
    ours, reference = losses(readout, eps)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    assert_close(ours(x, w), reference(x, w), **TIGHT)
    for found, expected in zip(
        torch.autograd.grad(ours(x, w), leaves), torch.autograd.grad(reference(x, w), leaves), strict=True
    ):
        assert_close(found, expected, **TIGHT)


def test_second_derivatives_are_those_of_the_formula_in_every_mode(draw, double_backward, forward_over_reverse):
    at, v = (draw(4, 6), draw(6)), (draw(4, 6), draw(6))
    ours, reference = losses(draw(4, 6), 1e-5)
    expected = double_backward(reference, at, v)
    for product in (double_backward, forward_over_reverse):
        assert_close(list(product(ours, at, v)), list(expected), **TIGHT)
    assert_close(list(jvp(jacrev(ours, (0, 1)), at, v)[1]), list(expected), **TIGHT)
    batched = vmap(grad(ours, (0, 1)))(torch.stack([at[0], v[0]]), torch.stack([at[1], v[1]]))
    single = [grad(reference, (0, 1))(*at), grad(reference, (0, 1))(*v)]
    assert_close(list(batched), [torch.stack(parts) for parts in zip(*single, strict=True)], **TIGHT)


def test_it_is_not_taken_in_forward_mode_nor_where_no_gradient_is_asked_for(draw):
    x, w = draw(3, 4).requires_grad_(), draw(4)
    assert has_kernel(x, w)
    assert not has_kernel(x.detach(), w)
    with torch.no_grad():
        assert not has_kernel(x, w)
    seen = []
    jvp(lambda x: (seen.append(has_kernel(x, w)), x)[1], (x,), (x.detach(),))
    assert seen == [False]


def test_a_gradient_that_is_not_contiguous_is_taken(draw):
    x, w, g = draw(3, 4).requires_grad_(), draw(4).requires_grad_(), draw(4, 3).t()
    found = torch.autograd.grad(rms_rows(x, w, 0.0), [x, w], g)
    expected = torch.autograd.grad(plain(x, w, 0.0), [x, w], g)
    assert_close(list(found), list(expected), **TIGHT)
