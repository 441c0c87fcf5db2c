"""Where weights start: the variances that Xavier, He and quaternions promise, and layers standardized on their data."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn.utils import parametrizations, skip_init
from torch.testing import assert_close

import normlens.nn
from normlens.nn import init
from normlens.nn.parametrize import unit_norm, weight_norm
from normlens.nn.weighted import NormPropLinear

WIDTH, DEPTH, SEEDS = 256, 10, 32
SPREAD = math.sqrt(5 * DEPTH / WIDTH / SEEDS)  # of a mean square after that many ReLU layers, at most: 0.078
XAVIER = (init.xavier_uniform_, init.xavier_normal_)
HE = (init.kaiming_uniform_, init.kaiming_normal_)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def through_layers(fill, activation):
    """Mean squares and means of the pre-activations of a deep square net, layer by layer, averaged over seeds."""
    found = []
    for seed in range(SEEDS):
        source = generator(seed)
        h = torch.randn(64, WIDTH, generator=source)
        rows = []
        for _ in range(DEPTH):
            z = activation(h) @ fill(torch.empty(WIDTH, WIDTH), generator=source).T
            rows.append((float(z.square().mean()), float(activation(z).mean())))
            h = z
        found.append(rows)
    return torch.tensor(found).mean(0).T


@pytest.mark.parametrize("fill", [*XAVIER, *HE], ids=lambda f: f.__name__)
def test_they_are_pytorchs_own_and_draw_from_a_generator(fill):
    assert fill is getattr(nn.init, fill.__name__)
    assert "generator" in inspect.signature(fill).parameters


@pytest.mark.parametrize("fill", XAVIER, ids=lambda f: f.__name__)
def test_xaviers_variance_is_two_over_the_sum_of_the_fans(fill):
    """The relative error of a variance of ``n`` numbers is at most ``sqrt(2 / n)``; four of these."""
    weight = fill(torch.empty(300, 100, 3, 3, dtype=torch.float64), generator=generator())
    want = 2 / (300 * 9 + 100 * 9)
    assert float(weight.var()) == pytest.approx(want, rel=4 * math.sqrt(2 / weight.numel()))
    if fill is init.xavier_uniform_:
        bound = math.sqrt(6 / (300 * 9 + 100 * 9))
        assert 0.999 * bound < float(weight.abs().max()) <= bound


@pytest.mark.parametrize("fill", HE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_hes_variance_is_two_over_the_fan_in_and_the_slope(fill, slope):
    weight = fill(torch.empty(300, 100, 3, 3, dtype=torch.float64), a=slope, generator=generator())
    want = 2 / ((1 + slope**2) * 900)
    assert float(weight.var()) == pytest.approx(want, rel=4 * math.sqrt(2 / weight.numel()))


@pytest.mark.parametrize("fill", XAVIER, ids=lambda f: f.__name__)
def test_deep_linear_maps_keep_their_variance_with_xavier(fill):
    """One draw's spread after ten layers was measured as 0.045, so that of the mean over the seeds is 0.008."""
    squares, _ = through_layers(fill, lambda h: h)
    assert_close(squares, torch.ones(DEPTH), rtol=0, atol=0.05)


@pytest.mark.parametrize("fill", HE, ids=lambda f: f.__name__)
def test_deep_relu_nets_keep_their_second_moment_with_he_about_a_mean_that_is_not_zero(fill):
    squares, means = through_layers(fill, torch.relu)
    assert_close(squares, torch.ones(DEPTH), rtol=0, atol=4 * SPREAD)
    assert_close(means, torch.full((DEPTH,), 1 / math.sqrt(2 * math.pi)), rtol=0, atol=0.06)


def test_deep_relu_nets_halve_their_second_moment_at_each_layer_with_xavier():
    squares, _ = through_layers(init.xavier_normal_, torch.relu)
    halves = 0.5 ** torch.arange(1, DEPTH + 1)
    assert_close(squares / halves, torch.ones(DEPTH), rtol=0, atol=4 * SPREAD)


def test_normprop_starts_relu_at_one_over_1_21_as_its_layer_does():
    gain = init.normprop_(torch.empty(3, dtype=torch.float64))
    assert_close(gain, torch.full((3,), 0.8256452711765564, dtype=torch.float64), rtol=4e-16, atol=0)
    assert 1 / gain[0].item() == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=4e-16)
    layer = NormPropLinear(4, 3, generator=generator(), activation=torch.tanh, dtype=torch.float64)
    assert torch.equal(init.normprop_(torch.empty(3, dtype=torch.float64), torch.tanh), layer.gain)


def test_normprop_makes_the_mean_squared_slope_of_a_relu_unit_one():
    """``J = gain f'(u) W / std`` with orthonormal ``W`` and ``u`` of either sign: ``gain^2 / (2 std^2) = 1``."""
    gain = init.normprop_(torch.empty((), dtype=torch.float64)).item()
    assert gain**2 / (2 * (0.5 - 0.5 / math.pi)) == pytest.approx(1, rel=1e-15)


def parts(weight):
    """Modulus, phase in (0, pi) and axis of a quaternion weight."""
    modulus = weight.square().sum(0).sqrt()
    imaginary = weight[1:].square().sum(0).sqrt()
    return modulus.flatten(), torch.atan2(imaginary, weight[0]).flatten(), (weight[1:] / imaginary).flatten(1)


@pytest.mark.parametrize(
    ("rule", "scale"), [("glorot", 1 / math.sqrt(2 * (20 * 9 + 50 * 9))), ("he", 1 / math.sqrt(2 * 20 * 9))]
)
def test_quaternions_have_chi_moduli_and_uniform_phases(rule, scale):
    weight = torch.empty(4, 50, 20, 3, 3, dtype=torch.float64)
    assert init.quaternion_(weight, generator=generator(), rule=rule) is weight
    modulus, phase, axis = parts(weight)
    assert stats.kstest(modulus / scale, stats.chi(4).cdf).pvalue > 0.01
    assert stats.kstest(phase / math.pi, "uniform").pvalue > 0.01
    assert_close(axis.square().sum(0), torch.ones(9000, dtype=torch.float64), rtol=1e-14, atol=0)
    # E|w|^2 = 4 s^2, and the variance of a squared chi of 4 is 8 s^4
    assert float(modulus.square().mean()) == pytest.approx(4 * scale**2, abs=4 * math.sqrt(8 / 9000) * scale**2)


def test_axes_of_quaternions_come_from_the_cube_and_not_from_the_sphere():
    """``E[x^4 / r^4]`` tells them apart: 1 / 5 on the sphere, and less where the diagonals are favored."""
    axis = parts(init.quaternion_(torch.empty(4, 300, 300, dtype=torch.float64), generator=generator()))[2]
    cube = integrate.tplquad(lambda x, y, z: (x**2 / (x**2 + y**2 + z**2)) ** 2, 0, 1, 0, 1, 0, 1, epsabs=1e-6)[0]
    fourth = axis**4
    error = float(fourth.std()) / math.sqrt(90000)
    assert abs(cube - 0.2) > 10 * error
    assert float(fourth[0].mean()) == pytest.approx(cube, abs=4 * error)
    near = 4 / math.sqrt(3 * 90000)
    assert_close(axis.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=near)
    assert_close(axis @ axis.T / 90000, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=near)


def test_quaternions_are_decided_by_the_generator_in_every_dtype():
    one, again, other = (init.quaternion_(torch.empty(4, 3, 2), generator=generator(seed)) for seed in (1, 1, 2))
    double = init.quaternion_(torch.empty(4, 3, 2, dtype=torch.float64), generator=generator(1))
    assert torch.equal(one, again)
    assert torch.equal(double.float(), one)
    assert not torch.equal(one, other)
    parameter = nn.Parameter(torch.empty(4, 3, 2))
    assert init.quaternion_(parameter, generator=generator(1)).grad_fn is None


@pytest.mark.parametrize(("shape", "rule"), [((3, 4, 4), "he"), ((4, 4), "he"), ((4, 2, 2), "lecun")])
def test_another_shape_or_rule_of_quaternions_is_refused(shape, rule):
    with pytest.raises(ValueError, match=rf"\(4, out / 4, in / 4, .*got \({shape[0]}, .*'{rule}'; stack the parts"):
        init.quaternion_(torch.empty(shape), generator=generator(), rule=rule)


OURS_AND_THEIRS = pytest.mark.parametrize(
    "normalize", [weight_norm, parametrizations.weight_norm], ids=["ours", "theirs"]
)


def filled(draw, kind, *sizes, **settings):
    layer = skip_init(kind, *sizes, dtype=torch.float64, **settings)
    for parameter in layer.parameters():
        parameter.data = draw(*parameter.shape)
    return layer


def network(draw, normalize=weight_norm):
    return nn.Sequential(
        normalize(filled(draw, nn.Conv2d, 3, 4, 2, groups=1)),
        nn.Tanh(),
        normalize(filled(draw, nn.ConvTranspose2d, 4, 6, 2), dim=1),
        nn.BatchNorm2d(6, dtype=torch.float64),
        normalize(filled(draw, nn.Conv2d, 6, 4, 2, groups=2)),
        nn.ReLU(),
        nn.Flatten(2),
        normalize(filled(draw, nn.Linear, 9, 5)),  # on (N, 4, 9): units are last
    )


def images(draw):
    return draw(12, 3, 4, 4) * 3 + 1


def outputs(model, x):
    """Each weight-normalized layer's output as (units, everything else), from one forward pass."""
    found = []
    for module in model:
        x = module(x)
        if hasattr(module, "parametrizations"):
            found.append(x.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1).detach())
    return found


@OURS_AND_THEIRS
def test_data_standardize_every_layer_in_the_order_of_the_forward_pass(draw, normalize):
    model, x = network(draw, normalize), images(draw)
    assert init.data_dependent_(model, x, generator=generator()) is model
    found = outputs(model, x)
    assert len(found) == 4
    for units in found:
        assert_close(units.mean(1), torch.zeros(len(units), dtype=torch.float64), rtol=0, atol=1e-12)
        assert_close(units.var(1, correction=0), torch.ones(len(units), dtype=torch.float64), rtol=1e-12, atol=0)


def test_gain_and_bias_are_the_formula(draw):
    layer, x = weight_norm(filled(draw, nn.Linear, 4, 3)), draw(20, 4) + 2
    v = layer.parametrizations.weight.original1
    kept = v.detach().clone()
    init.data_dependent_(layer, x)
    t = x @ nn.functional.normalize(kept, dim=1).T
    sd, mean = t.std(0, correction=0), t.mean(0)
    assert torch.equal(v, kept)
    assert_close(layer.parametrizations.weight.original0.flatten(), 1 / sd, rtol=1e-13, atol=0)
    assert_close(layer.bias, -mean / sd, rtol=1e-12, atol=1e-13)


def test_directions_are_redrawn_from_the_generator_with_the_papers_spread(draw):
    layer = weight_norm(filled(draw, nn.Linear, 100, 90))
    init.data_dependent_(layer, draw(8, 100), generator=generator(3))
    v = layer.parametrizations.weight.original1
    assert torch.equal(v, 0.05 * torch.randn(90, 100, generator=generator(3), dtype=torch.float64))
    init.data_dependent_(layer, draw(8, 100), generator=generator(3), std=2.0)
    assert torch.equal(v, 2 * torch.randn(90, 100, generator=generator(3), dtype=torch.float64))


def test_other_layers_buffers_hooks_and_random_states_are_left_alone(draw):
    model, x = network(draw).append(nn.Dropout()), images(draw)
    model.append(unit_norm(filled(draw, nn.Linear, 5, 2)))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    init.data_dependent_(model, x, generator=generator())
    assert torch.equal(torch.random.get_rng_state(), state)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    started = ("parametrizations.weight.original0", "parametrizations.weight.original1", "bias")
    assert changed == {f"{i}.{name}" for i in (0, 2, 4, 7) for name in started}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def refusal(draw):
    """Models that cannot be started so, by what the message says."""
    plain = filled(draw, nn.Linear, 4, 4)
    shared, extra = weight_norm(filled(draw, nn.Linear, 4, 4)), weight_norm(filled(draw, nn.Linear, 4, 4))
    dead = weight_norm(filled(draw, nn.Linear, 4, 4))
    recurrent = weight_norm(filled(draw, nn.LSTMCell, 4, 4), "weight_hh")
    idle = nn.Sequential(weight_norm(filled(draw, nn.Linear, 4, 4)))
    idle[0].never = weight_norm(filled(draw, nn.Linear, 4, 4))
    biased = weight_norm(filled(draw, nn.Linear, 4, 4))
    nn.utils.parametrize.register_parametrization(biased, "bias", nn.Tanh())
    return {
        "needs a layer under weight_norm; got a model without": plain,
        r"got 0, which has no plain bias": nn.Sequential(weight_norm(filled(draw, nn.Linear, 4, 4, bias=False))),
        r"got 1, which has no plain bias": nn.Sequential(plain, biased),
        r"got 0, which is a LSTMCell": nn.Sequential(recurrent),
        r"got 0, which has further reparametrizations": nn.Sequential(unit_norm(extra)),
        r"0, which has 4 units and a gain of shape \(1, 4\)": nn.Sequential(weight_norm(copy.deepcopy(plain), dim=1)),
        "run once; got a second run of 0, ": nn.Sequential(shared, nn.Tanh(), shared),
        "got none of 0.never in": idle,
        "got 4 of 1 that do not, the first unit 0": nn.Sequential(nn.Threshold(1e9, 2.0), dead),
    }


@pytest.mark.parametrize("index", range(9))
def test_what_cannot_be_started_from_data_is_refused_and_left_as_it_was(draw, index):
    message, model = list(refusal(draw).items())[index]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        init.data_dependent_(model, draw(6, 4), generator=generator())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_batch_of_one_has_no_spread_and_is_refused(draw):
    with pytest.raises(ValueError, match="vary over the batch; got 3 of the model that do not"):
        init.data_dependent_(weight_norm(filled(draw, nn.Linear, 4, 3)), draw(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_standardized_to_its_rounding(draw, dtype):
    layer, x = weight_norm(filled(draw, nn.Linear, 8, 3).to(dtype)), (draw(64, 8) * 1000).to(dtype)
    init.data_dependent_(layer, x)
    units, eps = layer(x).detach().double(), torch.finfo(dtype).eps
    assert_close(units.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=4 * eps)
    assert_close(units.std(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=4 * eps)


def test_the_index_hands_on_the_module():
    assert normlens.nn.init is init
    assert {"data_dependent_", "normprop_", "quaternion_"} <= set(init.__all__)
