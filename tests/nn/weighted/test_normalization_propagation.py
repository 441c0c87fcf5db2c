"""Normalization propagation keeps what its paper proves of it: moments, coherence bound, Jacobian, scale invariance."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch.func import hessian, jacrev
from torch.testing import assert_close

from normlens.nn.weighted.activation_constants import ActivationConstants
from normlens.nn.weighted.normalization_propagation import NormPropConv, NormPropLinear, coherence, unit_rows

EPS = torch.finfo(torch.float64).eps


def linear(inputs, outputs, **settings):
    return NormPropLinear(inputs, outputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64, **settings)


def conv(inputs, outputs, kernel, **settings):
    generator = torch.Generator().manual_seed(5)
    return NormPropConv(inputs, outputs, kernel, generator=generator, dtype=torch.float64, **settings)


def orthonormal(draw, rows, columns):
    return torch.linalg.qr(draw(columns, rows)).Q.T


@pytest.mark.parametrize(
    ("t", "expected"), [(0, -0.6833316961), (1, 1.0295268543), (-1, -0.6833316961), (2, 2.7423854048)]
)
def test_a_filter_of_length_one_without_gain_gives_the_known_numbers(t, expected):
    layer = linear(2, 1, affine=False)
    layer.weight.data = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    x = t * torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    assert layer(x).item() == pytest.approx(expected, abs=5e-11)


def test_the_output_is_the_formula_spelled_out(draw):
    layer, x = linear(3, 4), draw(5, 3)
    layer.gain.data, layer.bias.data = draw(4), draw(4)
    for i in range(4):
        w = layer.weight[i]
        u = layer.gain[i] * (x @ w) / torch.linalg.vector_norm(w) + layer.bias[i]
        wanted = (F.relu(u) - math.sqrt(1 / (2 * math.pi))) / math.sqrt((1 - 1 / math.pi) / 2)
        assert_close(layer(x)[:, i], wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, F.gelu, F.silu])
def test_standard_normal_input_comes_out_with_mean_zero_and_variance_one(activation):
    """A unit sees ``w . x / |w| ~ N(0, 1)`` whatever the filter, so one dimension is the general case."""
    layer = linear(1, 1, affine=False, activation=activation)
    layer.weight.data.fill_(3.0)

    def expect(power):
        def integrand(z):
            return layer(torch.tensor([[z]], dtype=torch.float64)).item() ** power * stats.norm.pdf(z)

        return integrate.quad(integrand, -12, 12, points=[0], epsabs=1e-13, limit=200)[0]

    assert (expect(1), expect(2)) == pytest.approx((0, 1), abs=1e-9)


def test_covariance_beyond_the_diagonal_is_bounded_by_the_coherence(draw):
    """For ``z = W x`` with ``Cov(x) = sigma^2 I`` it is ``sigma^2 w_i . w_j``, here of the linear map alone."""
    sigma = 1.7
    for weight in (draw(4, 6), draw(3, 8) + 1, torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)):
        cov = sigma**2 * weight @ weight.T
        beyond = torch.linalg.matrix_norm(cov - cov.diag().diag())
        squares = weight.square().sum(1)
        pairs = squares.sum() ** 2 - squares.square().sum()
        bound = sigma**2 * coherence(weight) * pairs.sqrt()
        assert beyond <= bound * (1 + 4 * EPS)
    assert beyond == pytest.approx(float(bound), rel=1e-15)  # two filters: one pair, nothing is lost


def test_the_map_before_the_activation_has_unit_variances_and_correlations_up_to_the_coherence(draw):
    layer = linear(6, 4, affine=False, activation=lambda u: u)
    jacobian = jacrev(lambda x: layer(x[None])[0])(draw(6)).detach()
    cov = jacobian @ jacobian.T
    assert_close(cov.diagonal(), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-13)
    assert (cov - cov.diag().diag()).abs().max().item() == pytest.approx(coherence(layer.weight).item(), abs=1e-13)


def test_the_coherence_of_known_filters():
    weight = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, -3.0]], dtype=torch.float64)
    assert coherence(weight).item() == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert coherence(weight[1:]).item() == pytest.approx(math.sqrt(0.5), rel=1e-15)  # of an obtuse angle
    assert coherence(weight[:2]).item() == 0.0
    assert coherence(weight[:1]).item() == 0.0
    assert coherence(weight.reshape(3, 1, 2, 1)).item() == pytest.approx(math.sqrt(0.5), rel=1e-15)


@pytest.mark.parametrize("affine", [False, True])
def test_with_orthonormal_filters_the_mean_of_jjt_is_1_46694_and_the_initial_gain_makes_it_1(draw, affine):
    """``x`` and ``-x`` are equally likely, and just one of them passes each ReLU: their mean is the expectation."""
    layer = linear(7, 4, affine=affine)
    layer.weight.data = 2.5 * orthonormal(draw, 4, 7)
    x = draw(7)
    total = torch.zeros(4, 4, dtype=torch.float64)
    for sign in (1, -1):
        jacobian = jacrev(lambda x: layer(x[None])[0])(sign * x)
        total += jacobian @ jacobian.T / 2
    expected = 1.0 if affine else math.pi / (math.pi - 1)
    assert_close(total, expected * torch.eye(4, dtype=torch.float64), rtol=0, atol=16 * EPS)
    assert math.pi / (math.pi - 1) == pytest.approx(1.46694, abs=1e-5)


def test_the_gain_starts_at_1_over_1_21_and_the_bias_at_zero():
    for layer in (linear(3, 4), conv(2, 4, (3,))):
        assert layer.gain.tolist() == pytest.approx([0.8256452711765564] * 4, rel=1e-15)
        assert layer.gain.tolist() == pytest.approx([1 / 1.2111738962363165] * 4, rel=1e-15)
        assert not layer.bias.any()


@pytest.mark.parametrize(("make", "inputs"), [(lambda: linear(200, 100), 200), (lambda: conv(20, 100, (5, 2)), 200)])
def test_weights_begin_with_the_spread_of_their_inputs(make, inputs):
    weight = make().weight.detach()
    # the standard error of a sample variance is sqrt(2 / n) of the variance
    assert abs(float(weight.var()) * inputs - 1) < 4 * math.sqrt(2 / weight.numel())


def test_for_other_activations_the_gain_starts_where_the_jacobian_keeps_lengths():
    found = ActivationConstants.of(torch.tanh)
    assert linear(3, 1, activation=torch.tanh).gain.item() == pytest.approx(found.std / found.slope, rel=1e-15)


def test_a_filter_of_zeros_has_no_direction_and_gives_nan_in_its_unit_alone(draw):
    layer = linear(3, 2)
    layer.weight.data[0] = 0
    y = layer(draw(4, 3)).detach()
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()


def test_without_affine_there_are_weights_alone():
    assert list(linear(3, 4, affine=False).state_dict()) == ["weight"]
    assert list(linear(3, 4).state_dict()) == ["weight", "gain", "bias"]


def readout(layer, weight, x):
    """A loss of the weights with curvature of its own."""
    parameters = {**dict(layer.named_parameters()), "weight": weight}
    return torch.func.functional_call(layer, parameters, (x,)).tanh().square().sum()


LAYERS = {
    "linear": (lambda: linear(3, 4), (6, 3)),
    "conv": (lambda: conv(2, 3, (2, 3)), (2, 2, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_length_of_a_filter_does_not_matter(draw, name):
    make, shape = LAYERS[name]
    layer, x = make(), draw(*shape)
    lengths = torch.tensor([0.01, 1.0, 7.0, 1000.0], dtype=torch.float64)[: len(layer.weight)]
    scaled = lengths.reshape(-1, *(1,) * (layer.weight.dim() - 1)) * layer.weight.detach()
    before = layer(x)
    layer.weight.data = scaled
    assert_close(layer(x), before, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_orthogonal_to_each_filter_and_falls_as_the_filter_grows(draw, name):
    make, shape = LAYERS[name]
    layer, x = make(), draw(*shape)
    w = layer.weight.detach()
    gradient = torch.func.grad(lambda w: readout(layer, w, x))
    g = gradient(w)
    along = (g * w).flatten(1).sum(1).abs() / (g * w).abs().flatten(1).sum(1)
    assert (along < 100 * EPS).all()
    assert_close(gradient(5 * w), g / 5, rtol=1e-12, atol=1e-13)


def test_the_hessian_sends_the_filters_to_minus_the_gradient_and_falls_with_their_square(draw):
    """Homogeneous of degree 0: ``H w = -grad``, ``w . H w = 0`` and ``H(c w) = H(w) / c^2``."""
    layer, x = linear(3, 2), draw(6, 3)
    w = layer.weight.detach()

    def loss(flat):
        return readout(layer, flat.reshape(2, 3), x)

    flat = w.flatten()
    h, g = hessian(loss)(flat).detach(), torch.func.grad(loss)(flat).detach()
    scale = float(h.abs().max())
    assert_close(h @ flat, -g, rtol=0, atol=100 * EPS * scale)
    assert abs(float(flat @ h @ flat)) < 100 * EPS * scale
    assert_close(9 * hessian(loss)(3 * flat), h, rtol=0, atol=100 * EPS * scale)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_is_the_linear_layer_on_each_patch(draw, rank):
    kernel = (2, 3, 2)[:rank]
    layer = conv(2, 3, kernel)
    layer.gain.data, layer.bias.data = draw(3), draw(3)
    x = draw(2, 2, *(5, 4, 3)[:rank])
    y = layer(x)
    flat = linear(2 * math.prod(kernel), 3)
    for name in ("weight", "gain", "bias"):
        getattr(flat, name).data = getattr(layer, name).detach().reshape(getattr(flat, name).shape)
    patches = x
    for axis, size in enumerate(kernel):
        patches = patches.unfold(2 + axis, size, 1)  # (N, C, *positions, *kernel)
    positions = patches.shape[2 : 2 + rank]
    rows = patches.movedim(1, 1 + rank).reshape(-1, 2 * math.prod(kernel))
    wanted = flat(rows).reshape(2, *positions, 3).movedim(-1, 1)
    assert_close(y, wanted, rtol=1e-13, atol=1e-13)


def test_stride_padding_and_dilation_are_those_of_a_convolution(draw):
    layer = conv(2, 3, (3, 2), stride=2, padding=1, dilation=2, affine=False, activation=lambda u: u)
    x = draw(2, 2, 9, 8)
    wanted = F.conv2d(x, unit_rows(layer.weight), stride=2, padding=1, dilation=2)
    assert_close(layer(x), wanted, rtol=1e-14, atol=1e-14)


def test_a_sample_is_computed_without_regard_to_the_others_and_the_mode(draw):
    for make, shape in LAYERS.values():
        layer, x = make(), draw(*shape)
        assert_close(layer(x)[1:2], layer.eval()(x[1:2]), rtol=1e-14, atol=1e-14)


def test_through_many_layers_the_activations_keep_their_mean_square(draw):
    """With independent filters of many inputs each layer keeps E y^2 at 1 up to sampling; a plain ReLU halves it."""
    depth, width, generator = 8, 256, torch.Generator().manual_seed(7)
    y = plain = draw(512, width)
    for _ in range(depth):
        layer = NormPropLinear(width, width, generator=generator, affine=False, dtype=torch.float64)
        y, plain = layer(y).detach(), torch.relu(plain @ unit_rows(layer.weight.detach()).T)
    assert float(y.square().mean()) == pytest.approx(1, abs=0.1)
    assert float(plain.square().mean()) < 2 * 0.5**depth


def test_autocast_lowers_the_product_alone_and_not_what_normalizes_it(draw):
    layer, x = linear(64, 8).float(), draw(16, 64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, product = layer(x), F.linear(x, unit_rows(layer.weight))
    assert product.dtype == torch.bfloat16
    u = product.float() * layer.gain + layer.bias
    assert torch.equal(y, (F.relu(u) - layer.constants.mean) / layer.constants.std)


@pytest.mark.parametrize("kernel", [3, (), (3, 3, 3, 3), (0, 2)])
def test_a_kernel_of_another_rank_is_refused(kernel):
    with pytest.raises(ValueError, match=r"NormPropConv needs kernel_size as a tuple.*got .*write \(3, 3\) for images"):
        conv(2, 3, kernel)


def test_an_input_of_another_rank_than_the_kernel_is_refused():
    match = r"NormPropConv needs \(N, in_channels, space0, space1\) with in_channels=2 at dim 1; got \(4, 2, 5\)"
    with pytest.raises(ValueError, match=match):
        conv(2, 3, (3, 3))(torch.ones(4, 2, 5))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=r"NormPropLinear needs out_features of at least 1; got 0; give a positive"):
        linear(3, 0)
    with pytest.raises(ValueError, match=r"NormPropConv needs stride of at least 1; got 0; give a positive"):
        conv(3, 2, (3,), stride=0)
