"""A tensor with a tangent is told from one without, at the innermost level."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp

from normlens.nn.forward_mode import has_tangent, in_forward_mode


def told(f, *at):
    seen = []

    def call(x):
        seen.append(has_tangent(None, x))
        return x.square().sum()

    f(call)(*at)
    return seen


def test_there_is_a_tangent_in_forward_mode_alone():
    x = torch.ones(3)
    assert told(lambda f: f, x) == [False]
    assert told(grad, x) == [False]
    assert told(lambda f: lambda x: jvp(f, (x,), (x,)), x) == [True]
    assert told(lambda f: grad(lambda x: jvp(f, (x,), (x,))[1]), x) == [True]
    assert told(lambda f: lambda x: jvp(lambda x: jvp(f, (x,), (x,))[1], (x,), (x,)), x) == [True]


def test_one_of_several_is_enough_and_a_dual_number_is_seen():
    x = torch.ones(3)
    with forward_ad.dual_level():
        assert has_tangent(x, forward_ad.make_dual(x, x))
        assert not has_tangent(x, None)


def test_a_compiled_function_is_not_broken_up():
    f = torch.compile(lambda x: x + has_tangent(x), fullgraph=True, backend="eager")
    assert torch.equal(f(torch.zeros(2)), torch.zeros(2))


def test_forward_mode_is_seen_at_whatever_level_it_is():
    seen = []

    def f(x):
        seen.append(in_forward_mode())
        return x.square().sum()

    x = torch.ones(3)
    f(x), grad(f)(x), jvp(f, (x,), (x,)), jvp(grad(f), (x,), (x,)), grad(lambda x: jvp(f, (x,), (x,))[1])(x)
    with forward_ad.dual_level():
        f(x)
    f(x)
    assert seen == [False, False, True, True, True, True, False]
