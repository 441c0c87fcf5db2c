"""Noisy threshold units fire as the error function says, and their noise normalizes their weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from normlens.nn.weighted.blank_out import sampling
from normlens.nn.weighted.stochastic_synapse import NSMConv, NSMLinear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(inputs, outputs, **settings):
    return NSMLinear(inputs, outputs, generator=generator(5), dtype=torch.float64, **settings)


def conv(inputs, outputs, kernel, **settings):
    return NSMConv(inputs, outputs, kernel, generator=generator(5), dtype=torch.float64, **settings)


def signs(*shape, seed=9):
    return torch.where(torch.rand(shape, generator=generator(seed)) < 0.5, -1.0, 1.0).double()


@torch.no_grad()
def frequency(layer, z, draws, seed=1):
    """How often each unit of one input fires, over independent rows of a batch, and the standard error of it."""
    fired = layer(z.expand(draws, *z.shape[1:]), generator(seed)) > 0
    share = fired.double().mean(0)
    return share, (share * (1 - share) / draws).sqrt().clamp_min(1 / draws)


def told(layer, z):
    """The probability to fire, a constant."""
    return layer.activation_probability(z).detach()[0]


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("p", [0.5, 0.8])
def test_units_fire_as_often_as_the_error_function_says(draw, noise, p):
    layer, z = linear(40, 6, p=p, noise=noise, std=0.5), signs(1, 40)
    layer.magnitude.data, layer.bias.data = draw(6).abs() + 0.3, 0.3 * draw(6)
    wanted = told(layer, z)
    share, error = frequency(layer, z, 20_000)
    central_limit = 0.01 if noise == "bernoulli" else 0.0
    assert float(((share - wanted).abs() - central_limit).div(error).max()) < 4.5
    assert float(wanted.max() - wanted.min()) > 0.3


def test_the_probability_is_the_formula_spelled_out(draw):
    layer, z = linear(7, 3, p=0.3), signs(5, 7)
    layer.magnitude.data, layer.bias.data = draw(3), draw(3)
    c = math.sqrt(2 * 0.3 * 0.7)
    for i in range(3):
        w, norm = layer.weight[i], torch.linalg.vector_norm(layer.weight[i])
        phi = layer.magnitude[i] * (z @ w) / norm + layer.bias[i] / (c * norm)
        assert_close(layer.activation_probability(z)[:, i], (1 + torch.erf(phi)) / 2, rtol=1e-13, atol=1e-15)
        assert_close(layer(z)[:, i], torch.erf(phi), rtol=1e-13, atol=1e-14)
        assert_close(layer.offset[i], c * layer.magnitude[i] - 0.3, rtol=1e-14, atol=1e-15)
    assert linear(7, 3, noise="gaussian", std=0.5).offset.tolist() == pytest.approx([math.sqrt(2) * 0.5 - 1] * 3)


def test_one_gaussian_synapse_fires_with_the_known_probability():
    layer, z = linear(1, 1, has_bias=False, noise="gaussian"), torch.ones(1, 1, dtype=torch.float64)
    layer.weight.data.fill_(1.0)
    assert layer.activation_probability(z).item() == pytest.approx(0.9213503964748575, abs=1e-15)
    share, error = frequency(layer, z, 100_000)
    assert abs(share.item() - 0.9213503964748575) < 4 * error.item()


def test_one_blank_out_synapse_always_fires_for_two_numbers_are_not_gaussian():
    layer, z = linear(1, 1, has_bias=False), torch.ones(1, 1, dtype=torch.float64)
    layer.weight.data.fill_(1.0)
    assert layer.offset.item() == pytest.approx(0.20710678118, abs=1e-11)
    assert frequency(layer, z, 10_000)[0].item() == 1
    assert layer.activation_probability(z).item() < 0.93


def test_gaussian_noise_of_another_deviation_than_one_keeps_the_law(draw):
    """The published code takes the deviation for a variance: 0.817 where 0.964 is meant."""
    layer, z = linear(40, 1, noise="gaussian", std=0.5), signs(1, 40)
    layer.weight.data = z * layer.weight.abs()
    layer.magnitude.data.fill_(1.2728 / float((z @ layer.weight.T).detach() / layer.weight.detach().norm()))
    share, error = frequency(layer, z, 40_000)
    assert abs(share.item() - 0.9641) < 4 * error.item() + 1e-4


def test_the_law_of_weights_and_bias_does_not_depend_on_their_scale(draw):
    layer, z = linear(12, 4), signs(30, 12)
    layer.bias.data = draw(4)
    before, sample = layer.activation_probability(z), layer(z, generator(2))
    layer.weight.data *= 7
    layer.bias.data *= 7
    assert_close(layer.activation_probability(z), before, rtol=1e-13, atol=1e-15)
    assert torch.equal(layer(z, generator(2)), sample)


def test_without_bias_the_gradient_is_orthogonal_to_every_row(draw):
    layer, z = linear(12, 4, has_bias=False), signs(30, 12)
    (gradient,) = torch.autograd.grad((layer(z) * draw(30, 4)).sum(), layer.weight)
    assert float((gradient * layer.weight.detach()).sum(1).abs().max()) < 1e-13
    assert float(gradient.norm()) > 0.1


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_a_common_gain_of_all_weights_is_rejected_where_it_is_not_of_a_plain_layer(draw, gain):
    layer, z = linear(20, 5, has_bias=False), signs(50, 20)
    before, plain = layer(z).std(), F.linear(z, layer.weight).std()
    layer.weight.data *= gain
    assert_close(layer(z).std(), before, rtol=1e-13, atol=0)
    assert_close(F.linear(z, layer.weight).std(), gain * plain, rtol=1e-13, atol=0)


def test_inputs_of_zero_and_one_break_the_law(draw):
    """Negative control: half of the synapses are silent, so the variance is half of what the formula takes."""
    layer, z = linear(200, 1, has_bias=False), (signs(1, 200) + 1) / 2
    layer.weight.data = (2 * z - 1) * layer.weight.abs()
    layer.magnitude.data.fill_(0.4 / float((z @ layer.weight.T).detach() / layer.weight.detach().norm()))
    share, error = frequency(layer, z, 20_000)
    active = (layer.weight.norm() / (layer.weight * z).norm()).detach()
    wanted = (1 + torch.erf(0.4 * active)) / 2
    assert abs(share.item() - wanted.item()) < 4 * error.item() + 0.005
    assert share.item() - told(layer, z).item() > 10 * error.item()


def correlation(layer, z):
    y = layer(z.expand(20_000, -1), generator(8))
    return torch.corrcoef(y.T)[0, 1].item()


@pytest.mark.parametrize("approx", [False, True])
def test_noise_of_each_synapse_leaves_equal_units_independent_and_of_each_input_unit_makes_them_one(approx):
    for sample, wanted in (("synapse", 0.0), ("unit", 1.0)):
        layer = linear(40, 2, sample=sample, approx=approx)
        layer.weight.data[1] = layer.weight[0]
        assert correlation(layer, signs(1, 40)) == pytest.approx(wanted, abs=5 / math.sqrt(20_000))


@pytest.mark.parametrize("sample", ["synapse", "unit"])
def test_the_gaussian_approximation_fires_as_often(draw, sample):
    layer, z = linear(40, 6, approx=True, sample=sample), signs(1, 40)
    layer.bias.data = 0.3 * draw(6)
    share, error = frequency(layer, z, 20_000)
    assert float(((share - told(layer, z)).abs() / error).max()) < 4.5


def test_a_straight_through_sample_is_a_sign_with_the_derivatives_of_its_mean(draw):
    layer, z, readout = linear(8, 5), draw(6, 8).requires_grad_(), draw(6, 5)
    y = layer(z, generator(3))
    assert set(y.flatten().tolist()) == {-1.0, 1.0}
    leaves = [z, *layer.parameters()]
    of_sample = torch.autograd.grad((y * readout).sum(), leaves, create_graph=True)
    of_mean = torch.autograd.grad((layer(z) * readout).sum(), leaves, create_graph=True)
    assert_close(of_sample, of_mean, rtol=0, atol=0)
    assert float(of_mean[0].detach().norm()) > 0.1
    again = [torch.autograd.grad(g[0].square().sum(), z)[0] for g in (of_sample, of_mean)]
    assert_close(again[0], again[1], rtol=0, atol=0)


def test_the_concrete_estimator_has_exact_derivatives(draw):
    layer, z = linear(3, 2, estimator="concrete"), draw(4, 3)
    at = [t.detach().clone().requires_grad_() for t in (z, *layer.parameters())]

    def call(z, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, named, (z, generator(4)))

    assert torch.autograd.gradcheck(call, at)
    assert torch.autograd.gradgradcheck(call, at, [draw(4, 2).requires_grad_()])


def test_a_concrete_sample_is_positive_as_often_as_the_unit_fires_and_sharp_when_cold(draw):
    z = signs(1, 40)
    warm, cold = (linear(40, 4, estimator="concrete", temperature=t) for t in (0.5, 1e-3))
    for layer in (warm, cold):
        layer.magnitude.data.fill_(0.1)
    share, error = frequency(warm, z, 20_000)
    assert float(((share - told(warm, z)).abs() / error).max()) < 4.5
    y = cold(z.expand(200, -1), generator(2))
    assert float((y.abs() > 0.999).double().mean()) > 0.98
    assert float((warm(z.expand(200, -1), generator(2)).abs() > 0.999).double().mean()) < 0.1


@pytest.mark.parametrize("settings", [{}, {"approx": True}, {"sample": "unit"}, {"noise": "gaussian"}])
def test_a_convolution_is_the_linear_layer_under_every_position(draw, settings):
    layer = conv(3, 4, (2, 3), stride=2, padding=1, **settings)
    layer.bias.data, layer.magnitude.data = 0.3 * draw(4), draw(4).abs() + 0.5
    twin, z = linear(18, 4, **settings), signs(5, 3, 6, 7)
    for name in ("weight", "bias", "magnitude"):
        getattr(twin, name).data = getattr(layer, name).data.reshape(getattr(twin, name).shape)
    patches = F.unfold(z, (2, 3), stride=2, padding=1)
    wanted = torch.stack([twin(patch) for patch in patches.unbind(2)], 2)
    assert_close(layer(z).flatten(2), wanted, rtol=1e-13, atol=1e-14)
    assert torch.equal(layer._patches(z).flatten(1, 2).mT, patches)


@pytest.mark.parametrize("kernel", [(3,), (2, 2), (2, 1, 2)])
def test_convolutions_of_every_rank_fire_as_the_error_function_says(kernel):
    z = signs(1, 6, *(4 for _ in kernel))
    for settings in ({}, {"approx": True}, {"sample": "unit"}):
        layer = conv(6, 2, kernel, **settings)
        wanted = told(layer, z)
        share, error = frequency(layer, z, 4_000)
        allowed = 0.03 + 4.5 * error  # the central limit of 12 to 24 synapses
        assert bool(((share - wanted).abs() < allowed).all())


def test_every_synapse_draws_anew_at_every_position():
    layer, z = conv(40, 1, (1,)), signs(1, 40, 1).expand(20_000, 40, 2)
    y = layer(z, generator(8))[:, 0]
    assert abs(torch.corrcoef(y.T)[0, 1].item()) < 5 / math.sqrt(20_000)


def test_the_noise_is_the_callers_alone_and_alike_in_every_dtype_and_mode():
    layer, z = linear(10, 30), signs(40, 10)
    before = torch.random.get_rng_state()
    sample = layer(z, generator(6))
    assert torch.equal(layer.eval()(z, generator(6)), sample)
    with sampling(layer, generator(6)):
        assert torch.equal(layer(z), sample)
        assert not torch.equal(layer(z), sample)
    single = NSMLinear(10, 30, generator=generator(5))
    assert torch.equal(single(z.float(), generator(6)).double(), sample)
    assert single(z.half(), generator(6)).dtype == torch.float16
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sizes_and_kernels_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="NSMLinear needs in_features of at least 1; got 0"):
        linear(0, 2)
    with pytest.raises(ValueError, match="NSMConv needs stride of at least 1; got 0"):
        conv(1, 2, (3,), stride=0)
    with pytest.raises(ValueError, match="NSMConv needs kernel_size as a tuple"):
        conv(1, 2, 3)
