"""A term in the gradient is there once for each forward pass, and is differentiated as what it is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.func import grad, jvp, linearize
from torch.testing import assert_close

from normlens.nn.extra_gradient import add_to_gradient


@pytest.fixture
def cotangents():
    """The list of what ``seen`` was called with."""
    return []


def loss(x, seen):
    """sum(sin(2 x)), and beside it the gradient of sum(x^4) / 4."""
    return add_to_gradient(2 * x, x, x**3, seen).sin().sum()


def test_the_first_gradient_has_the_term_and_those_after_it_through_the_same_graph_have_not(draw, cotangents):
    x = draw(5).requires_grad_()
    y = loss(x, cotangents.append)
    first, second, third = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(3))
    assert_close(first, 2 * (2 * x).cos() + x**3, rtol=1e-14, atol=1e-14)
    assert_close(second, 2 * (2 * x).cos(), rtol=1e-14, atol=1e-14)
    assert torch.equal(second, third)


def test_the_gradient_that_comes_in_is_shown_once_and_without_a_graph(draw, cotangents):
    x = draw(5).requires_grad_()
    y = loss(x, cotangents.append)
    for _ in range(2):
        torch.autograd.grad(y, x, create_graph=True)
    (seen,) = cotangents
    assert_close(seen, (2 * x).cos().detach(), rtol=1e-14, atol=1e-14)
    assert not seen.requires_grad


def test_the_value_is_left_alone_and_without_a_backward_pass_nothing_is_seen(draw, cotangents):
    x = draw(5).requires_grad_()
    assert torch.equal(loss(x, cotangents.append), (2 * x).sin().sum())
    with torch.no_grad():
        assert torch.equal(loss(x, cotangents.append), (2 * x).sin().sum())
    assert cotangents == []


def test_the_second_derivative_is_that_of_the_loss_whose_gradient_it_is(draw, double_backward, forward_over_reverse):
    x, v = draw(5), draw(5)
    want = (-4 * (2 * x).sin() + 3 * x**2) * v
    whole = [double_backward, forward_over_reverse]
    for product in whole:
        assert_close(product(lambda x: loss(x, lambda _: None), (x,), (v,)), [want], rtol=1e-13, atol=1e-13)
    with warnings.catch_warnings():  # torch warns of its own tracing
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
        linear = linearize(grad(lambda x: loss(x, lambda _: None)), x)[1]
    assert_close(linear(v), want, rtol=1e-13, atol=1e-13)


def test_the_directional_derivative_is_that_of_the_value(draw):
    x, v = draw(5), draw(5)
    got = jvp(lambda x: loss(x, lambda _: None), (x,), (v,))[1]
    assert_close(got, (2 * (2 * x).cos() * v).sum(), rtol=1e-14, atol=1e-14)
