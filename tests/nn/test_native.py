"""The fast kernels agree with the elementary operations: values, second derivatives, half precision, memory formats."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacrev, jvp
from torch.testing import assert_close

from normlens.nn import functional as nf
from normlens.nn import native

SHAPES = [(5, 6), (3, 6, 4), (3, 6, 3, 2), (2, 6, 2, 3, 2)]  # two groups of three channels: of two, even (N, C) is +-1


def on_batch(x, w, b, eps=1e-5):
    return native.batch_norm(x, None, None, w, b, training=True, factor=0.0, eps=eps)


def running(x):
    channels = torch.arange(x.shape[1], dtype=nf.promote(x).dtype)
    return nf.Moments(channels, channels + 1)


def by_running(x, w, b, eps=1e-5):
    return native.batch_norm(x, *running(x), w, b, training=False, factor=0.0, eps=eps)


def rms(x, w, b, eps=1e-5):
    return native.rms_norm(x, w, eps=eps) + 0 * nf.per_channel(b, x)


PAIRS = {
    "batch norm on the batch": (on_batch, lambda x, w, b, eps: nf.batch_norm(x, None, w, b, eps=eps)),
    "batch norm by running": (by_running, lambda x, w, b, eps: nf.batch_norm(x, running(x), w, b, eps=eps)),
    "group norm": (
        lambda x, w, b, eps: native.group_norm(x, 2, w, b, eps=eps),
        lambda x, w, b, eps: nf.group_norm(x, 2, w, b, eps=eps),
    ),
    "layer norm": (
        lambda x, w, b, eps: native.group_norm(x, 1, w, b, eps=eps),
        lambda x, w, b, eps: nf.layer_norm(x, w, b, eps=eps),
    ),
    "rms norm": (rms, lambda x, w, b, eps: nf.rms_norm(x, w, eps=eps) + 0 * nf.per_channel(b, x)),
}


def losses(name, readout, eps):
    kernel, reference = PAIRS[name]
    return [lambda x, w, b, f=f: (torch.tanh(f(x, w, b, eps)) * readout).sum() for f in (kernel, reference)]


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_of_the_kernels_are_those_of_the_reference(
    draw, double_backward, forward_over_reverse, name, shape, eps
):
    at, v = (draw(*shape), draw(6), draw(6)), (draw(*shape), draw(6), draw(6))
    kernel, reference = losses(name, draw(*shape), eps)
    expected = double_backward(reference, at, v)
    scale = max(h.abs().max() for h in expected)
    for product in (double_backward, forward_over_reverse):
        for got, want in zip(product(kernel, at, v), expected, strict=True):
            assert_close(got / scale, want / scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 3)])
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "batch norm on the batch"])
def test_all_kernels_but_batch_norm_on_the_batch_are_right_with_forward_mode_inside_or_outside(
    draw, double_backward, name, shape
):
    at, v = (draw(*shape), draw(6), draw(6)), (draw(*shape), draw(6), draw(6))
    kernel, reference = losses(name, draw(*shape), 1e-5)
    expected = double_backward(reference, at, v)
    assert_close(list(jvp(jacrev(kernel, (0, 1, 2)), at, v)[1]), expected, rtol=1e-12, atol=1e-12)
    inside = grad(lambda *at: jvp(kernel, at, v)[1], (0, 1, 2))(*at)
    assert_close(list(inside), expected, rtol=1e-12, atol=1e-12)
    twice = jvp(lambda *at: jvp(kernel, at, v)[1], at, v)[1]
    assert_close(twice, sum((h * u).sum() for h, u in zip(expected, v, strict=True)), rtol=1e-12, atol=1e-12)


@pytest.mark.xfail(
    strict=True, reason="pytorch/pytorch#196699; once it passes, take the warnings out of the docstrings"
)
def test_batch_norm_on_the_batch_is_right_under_jvp_of_jacrev(draw, double_backward):
    at, v = (draw(3, 4, 3), draw(4), draw(4)), (draw(3, 4, 3), draw(4), draw(4))
    kernel, reference = losses("batch norm on the batch", draw(3, 4, 3), 1e-5)
    assert_close(
        list(jvp(jacrev(kernel, (0, 1, 2)), at, v)[1]), double_backward(reference, at, v), rtol=1e-6, atol=1e-6
    )


@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="PyTorch's kernel; once it passes, amend the docstrings")
def test_group_norm_takes_batched_gradients_through_its_double_backward(draw):
    x, readout = draw(6, 4, 3).requires_grad_(), draw(6, 4, 3)
    loss = (native.group_norm(x, 2, None, None, eps=1e-5).tanh() * readout).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.autograd.grad(gradient, x, draw(2, 6, 4, 3), is_grads_batched=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_group_norm_without_space_takes_batched_gradients_and_compiles_whole(draw, groups):
    x, readout, v = draw(6, 8).requires_grad_(), draw(6, 8), draw(2, 6, 8)

    def norm(x):
        return native.group_norm(x, groups, None, None, eps=1e-5)

    (gradient,) = torch.autograd.grad((norm(x).tanh() * readout).sum(), x, create_graph=True)
    (batched,) = torch.autograd.grad(gradient, x, v, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(gradient, x, one, retain_graph=True)[0] for one in v]
    assert_close(batched, torch.stack(single), rtol=1e-12, atol=1e-12)
    assert_close(torch.compile(norm, fullgraph=True, backend="eager")(x), norm(x), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", PAIRS)
def test_a_mean_of_a_thousand_deviations_costs_a_few_roundings_of_the_mean(draw, name, memory_format):
    x = (draw(8, 4, 7, 7) + 1000).float().to(memory_format=memory_format)
    one, zero = torch.ones(4), torch.zeros(4)
    kernel, reference = PAIRS[name]
    want = reference(x.double(), one.double(), zero.double(), 1e-5)
    rounding = 1000 * torch.finfo(torch.float32).eps  # of the mean, in standard deviations
    assert_close(kernel(x, one, zero, 1e-5).double(), want, rtol=rounding, atol=20 * rounding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "batch norm by running"])  # no statistics to take
def test_second_derivatives_in_half_precision_are_those_of_float64(draw, double_backward, name, dtype):
    x, v = (draw(8, 4, 3) * 3 + 50).to(dtype), draw(8, 4, 3).to(dtype)
    readout, eps = 100 * draw(8, 4, 3), torch.finfo(dtype).eps
    kernel, reference = PAIRS[name]
    one, zero = torch.ones(4), torch.zeros(4)

    def loss(f):
        return lambda x: (torch.sin(f(x, one, zero, 1e-5).double()) * readout).sum()

    (want,) = double_backward(loss(reference), (x.double(),), (v.double(),))
    (got,) = double_backward(loss(kernel), (x,), (v,))
    scale = want.abs().max()
    assert_close(got.double() / scale, want / scale, rtol=0, atol=2 * eps)


def test_running_statistics_kept_in_half_precision_follow_a_batch_in_float32(draw):
    x = (draw(16, 4, 5) * 100 + 50).half()
    mean, var = torch.zeros(4, dtype=torch.float16), torch.ones(4, dtype=torch.float16)
    native.batch_norm(x, mean, var, None, None, training=True, factor=1.0, eps=1e-5)
    values = nf.channel_matrix(x.double())
    assert_close(mean.double(), values.mean(1), rtol=1e-3, atol=0)
    assert_close(var.double(), values.var(1), rtol=1e-3, atol=0)
