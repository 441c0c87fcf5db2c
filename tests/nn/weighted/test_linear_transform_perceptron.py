"""Raiko's transformations: units of zero mean and slope, a map that stays, and a Fisher matrix nearer its diagonal."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy import stats
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from normlens.nn.weighted.linear_transform_perceptron import LinearTransformPerceptron

EPS = torch.finfo(torch.float64).eps
SLOPES = {0.01: 0.99990002, 0.1: 0.99019453, 0.3: 0.92305031, 0.5: 0.82648386, 1.0: 0.60570551}  # E tanh'(gamma Z)


def perceptron(*sizes, seed=6, dtype=torch.float64, **settings):
    return LinearTransformPerceptron(*sizes, generator=torch.Generator().manual_seed(seed), dtype=dtype, **settings)


def trained(draw, *sizes, **settings):
    """Somewhere in the midst of training: nothing is zero, an old transformation stands."""
    layer = perceptron(*sizes, **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * draw(*parameter.shape)
    layer.update_transform(draw(7, sizes[0]) - 1)
    return layer


def mean_and_slope(layer, x):
    """Mean over the samples of each hidden unit and of its derivative by its own input ``s``."""
    bias = 0 if layer.hidden_bias is None else layer.hidden_bias.detach()
    s = x @ layer.hidden_weight.detach().T + bias
    leaf = s.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer.activation(leaf).sum(), leaf)
    return layer.hidden(x).detach().mean(0), (slope + layer.alpha).mean(0)


def normal_quantiles(count):
    """Midpoints of a standard normal distribution, symmetric to the bit, shaped ``(count, 1)``."""
    upper = stats.norm.isf((torch.arange(count // 2, dtype=torch.float64) + 0.5) / count)
    upper = torch.as_tensor(upper)
    return torch.cat([upper, -upper])[:, None]


def test_the_output_is_the_formula_spelled_out(draw):
    layer, x = trained(draw, 3, 5, 2), draw(4, 3)
    s = x @ layer.hidden_weight.T + layer.hidden_bias
    hidden = torch.tanh(s) + layer.alpha * s + layer.beta
    wanted = hidden @ layer.output_weight.T + x @ layer.shortcut_weight.T + layer.shortcut_bias
    assert_close(layer(x), wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, torch.nn.functional.gelu])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_an_update_leaves_the_map_as_it_was_to_2e_15(draw, activation, has_bias, count):
    layer, x = trained(draw, 4, 6, 3, activation=activation, has_bias=has_bias), 2 * draw(count, 4) + 1
    everywhere = torch.cat([x, 3 * draw(20, 4)])  # on the samples of the update and off them
    before, alpha = layer(everywhere).detach(), layer.alpha.clone()
    layer.update_transform(x)
    shortcut = everywhere.abs() @ layer.shortcut_weight.detach().abs().T
    scale = float((layer.hidden(everywhere).detach().abs() @ layer.output_weight.detach().abs().T + shortcut).max())
    assert float((layer(everywhere).detach() - before).abs().max()) < 2e-15 * scale
    assert float((layer.alpha - alpha).abs().max()) > 0.01


@pytest.mark.parametrize("has_bias", [True, False])
def test_after_an_update_mean_and_mean_slope_are_zero(draw, has_bias):
    layer, x = trained(draw, 4, 6, 3, has_bias=has_bias), draw(64, 4) + 1
    before = mean_and_slope(layer, x)
    layer.update_transform(x)
    for was, now in zip(before, mean_and_slope(layer, x), strict=True):
        assert float(was.abs().max()) > 0.01
        assert float(now.abs().max()) < 4 * EPS


@pytest.mark.parametrize("gamma", SLOPES)
def test_for_normal_input_alpha_is_minus_the_mean_slope_of_the_table(gamma):
    layer = perceptron(1, 1, 1)
    layer.hidden_weight.data.fill_(gamma)
    layer.update_transform(normal_quantiles(400_000))
    assert float(layer.alpha) == pytest.approx(-SLOPES[gamma], abs=2e-6)
    assert float(layer.beta) == pytest.approx(0, abs=1e-12)  # tanh is odd


def test_with_relu_alpha_is_minus_the_share_of_active_samples(draw):
    layer, x = perceptron(4, 6, 2, activation=torch.relu), draw(50, 4) + 0.5
    layer.update_transform(x)
    active = (x @ layer.hidden_weight.T + layer.hidden_bias > 0).double().mean(0)
    assert_close(layer.alpha, -active, rtol=0, atol=4 * EPS)


def fisher(layer, x):
    """Fisher matrix of a squared loss (variance 1), mean over the samples, and where each parameter lies in it."""
    named = {name: p.detach() for name, p in layer.named_parameters()}
    jacobian = jacrev(lambda named: functional_call(layer, named, (x,)))(named)
    columns = {name: part.reshape(len(x), layer.out_features, -1) for name, part in jacobian.items()}
    whole, at, start = torch.cat(list(columns.values()), dim=2), {}, 0
    for name, part in columns.items():
        at[name] = slice(start, start + part.shape[2])
        start += part.shape[2]
    return torch.einsum("nki,nkj->ij", whole, whole) / len(x), at


def test_an_update_clears_the_fisher_blocks_between_the_constant_and_the_hidden_layer(draw):
    layer, x = trained(draw, 3, 4, 2), draw(40, 3) + 0.7
    layer.update_transform(draw(40, 3))
    for update, check in ((False, lambda b: b > 0.01), (True, lambda b: b < 16 * EPS)):
        if update:
            layer.update_transform(x)
        matrix, at = fisher(layer, x)
        for name in ("output_weight", "hidden_bias"):
            assert check(float(matrix[at["shortcut_bias"], at[name]].abs().max())), name


def test_for_normal_input_zero_slope_clears_the_block_between_the_shortcut_and_the_output_weights():
    """Stein: ``E[x phi(b x)] = b E[phi'(b x)]``, and that is zero."""
    layer, x = perceptron(1, 3, 2), normal_quantiles(200_000)
    layer.hidden_weight.data = torch.tensor([[0.5], [1.0], [-2.0]], dtype=torch.float64)

    def block():
        return (x * layer.hidden(x).detach()).mean(0)

    assert float(block().abs().min()) > 0.3
    layer.update_transform(x)
    assert float(block().abs().max()) < 1e-4  # what 200 000 midpoints miss of E x^2 in the tails


@pytest.mark.parametrize("seed", range(5))
def test_an_update_brings_the_fisher_matrix_nearer_to_its_diagonal(draw, seed):
    layer, x = perceptron(4, 6, 3, seed=seed), draw(200, 4)
    shares = []
    for _ in range(2):
        matrix, _ = fisher(layer, x)
        beyond = matrix - matrix.diag().diag()
        shares.append(float(beyond.square().sum() / matrix.square().sum()))
        layer.update_transform(x)
    assert shares[1] < shares[0]


def test_an_update_changes_the_shortcut_and_the_transformation_alone(draw):
    layer = trained(draw, 4, 6, 3)
    before = copy.deepcopy(layer.state_dict())
    layer.update_transform(draw(9, 4))
    changed = {key for key, value in layer.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"alpha", "beta", "shortcut_weight", "shortcut_bias"}
    assert all(p.requires_grad and p.grad_fn is None for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_same_update_twice_is_one_update_even_of_wider_samples_than_the_layer_is(draw, dtype):
    layer, x = trained(draw, 4, 6, 3).to(dtype), draw(30, 4)
    layer.update_transform(x)
    before = copy.deepcopy(layer.state_dict())
    layer.update_transform(x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_the_map_stays_up_to_the_rounding_of_the_shortcut(draw, dtype):
    layer, x = perceptron(4, 6, 3, dtype=dtype), draw(50, 4)
    before = layer(x).detach()
    layer.update_transform(x.to(dtype))
    near = 8 * torch.finfo(dtype).eps * float(x.abs().max())
    assert_close(layer(x).detach(), before, rtol=0, atol=near)


def test_autocast_does_not_lower_the_precision_of_an_update(draw):
    layer = trained(draw, 4, 6, 3).float()
    twin, x = copy.deepcopy(layer), draw(30, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.update_transform(x)
    twin.update_transform(x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_gradients_of_the_weights_take_the_transformation_as_constant(draw):
    layer, x = trained(draw, 3, 5, 2), draw(4, 3)
    s = x @ layer.hidden_weight.T + layer.hidden_bias
    d_hidden = (1 - torch.tanh(s) ** 2 + layer.alpha) * layer.output_weight.sum(0)
    layer(x).sum().backward()
    assert_close(layer.hidden_weight.grad, d_hidden.T @ x, rtol=1e-13, atol=1e-13)


def test_weights_begin_with_the_spread_of_their_inputs_and_all_else_at_zero():
    layer = perceptron(50, 400, 100)
    for weight, inputs in ((layer.hidden_weight, 50), (layer.output_weight, 400)):
        # the standard error of a sample variance is sqrt(2 / n) of the variance
        off = abs(float(weight.detach().var()) * inputs - 1)
        assert off < 4 * math.sqrt(2 / weight.numel())
    others = (layer.hidden_bias, layer.shortcut_weight, layer.shortcut_bias, layer.alpha, layer.beta)
    assert not any(tensor.any() for tensor in others)


def test_resetting_forgets_the_transformation(draw):
    layer, fresh = trained(draw, 3, 5, 2), perceptron(3, 5, 2, seed=9)
    layer.reset_parameters(torch.Generator().manual_seed(9))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key


@pytest.mark.parametrize("bad", ["nan", "inf", "empty"])
def test_samples_without_a_mean_are_refused_and_nothing_is_changed(draw, bad):
    layer = trained(draw, 3, 5, 2)
    before, x = copy.deepcopy(layer.state_dict()), draw(0 if bad == "empty" else 4, 3)
    x[1:2, 0] = float("nan" if bad == "empty" else bad)
    match = r"LinearTransformPerceptron needs at least one sample, and finite ones.*got \(\d, 3\) with [01] numbers"
    with pytest.raises(ValueError, match=match):
        layer.update_transform(x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match=r"LinearTransformPerceptron needs hidden_features of at least 1; got 0"):
        perceptron(3, 0, 2)
