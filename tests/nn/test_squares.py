"""The mean square is that of PyTorch in every derivative mode, and writes less."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacrev, jvp, vmap
from torch.testing import assert_close

from normlens.nn.squares import mean_square

DIMS = [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)]
exact = lambda got, want: assert_close(got, want, rtol=1e-13, atol=1e-13)  # noqa: E731


def plain(x, dims):
    return x.square().mean(dims, keepdim=True)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_value_gradient_and_second_derivatives_are_those_of_the_plain_way_in_every_mode(draw, dims):
    x, v = draw(3, 4, 2), draw(3, 4, 2)
    exact(mean_square(x, dims), plain(x, dims))

    def losses(f):
        return lambda x: f(x, dims).exp().sum()

    ours, theirs = losses(mean_square), losses(plain)
    product = jvp(grad(theirs), (x,), (v,))[1]
    exact(grad(ours)(x), grad(theirs)(x))
    for of in (grad, jacrev):
        exact(jvp(of(ours), (x,), (v,))[1], product)
    exact(grad(lambda x: jvp(ours, (x,), (v,))[1])(x), product)
    exact(jvp(lambda x: jvp(ours, (x,), (v,))[1], (x,), (v,))[1], (product * v).sum())
    exact(vmap(grad(ours))(torch.stack([x, v])), torch.stack([grad(theirs)(x), grad(theirs)(v)]))


def test_at_zero_the_second_derivative_is_two_over_the_count():
    x = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    hessian = torch.autograd.functional.hessian(lambda x: mean_square(x, (0,)).sum(), x)
    exact(hessian, 0.4 * torch.eye(5, dtype=torch.float64))


def test_gradcheck_holds_twice(draw):
    x = draw(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean_square(x, (0, 2)), (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: mean_square(x, (0, 2)), (x,), torch.ones(1, 4, 1).double())


def test_it_compiles_without_a_graph_break(draw):
    x = draw(3, 4)
    compiled = torch.compile(mean_square, fullgraph=True, backend="eager")
    exact(compiled(x, (0,)), plain(x, (0,)))
