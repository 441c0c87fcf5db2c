"""The constants of an activation are its moments under a standard normal number, and their error is an error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn

from normlens.nn.weighted.activation_constants import ActivationConstants


def by_adaptive_quadrature(activation):
    """Mean, spread and slope by SciPy, with breaks at the kinks of the activations below."""

    def expect(f):
        density = stats.norm.pdf
        return integrate.quad(lambda z: f(z) * density(z), -12, 12, points=[-1, 0, 1], epsabs=1e-13, limit=200)[0]

    def value(z):
        return float(activation(torch.tensor(z, dtype=torch.float64)))

    def slope(z):
        leaf = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(activation(leaf), leaf)[0])

    mean = expect(value)
    return mean, math.sqrt(expect(lambda z: (value(z) - mean) ** 2)), math.sqrt(expect(lambda z: slope(z) ** 2))


def test_the_constants_of_relu_are_those_of_the_paper():
    found = ActivationConstants.of(torch.relu)
    assert found.mean == pytest.approx(0.3989422804014327, rel=1e-15)
    assert found.std == pytest.approx(0.5838193701035489, rel=1e-15)
    assert 1 / found.std == pytest.approx(1.712858550449663, rel=1e-15)
    assert found.std / found.slope == pytest.approx(0.8256452711765564, rel=1e-15)
    assert found.error == 0.0


@pytest.mark.parametrize("relu", [F.relu, nn.ReLU()])
def test_relu_is_known_by_each_of_its_names(relu):
    assert ActivationConstants.of(relu) == ActivationConstants.of(torch.relu)


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid, F.gelu, F.silu, F.softplus, torch.sin])
def test_the_constants_of_a_smooth_activation_are_exact_to_nine_digits(activation):
    found = ActivationConstants.of(activation)
    wanted = by_adaptive_quadrature(activation)
    assert (found.mean, found.std, found.slope) == pytest.approx(wanted, abs=1e-9)
    assert found.error < 1e-9


@pytest.mark.parametrize("activation", [F.leaky_relu, F.elu, F.selu, F.hardtanh, lambda z: F.relu(z)])
@pytest.mark.parametrize("nodes", [64, 128])
def test_where_there_is_a_kink_the_constants_are_off_by_less_than_their_error(activation, nodes):
    found = ActivationConstants.of(activation, nodes=nodes)
    wanted = by_adaptive_quadrature(activation)
    off = max(abs(a - b) for a, b in zip((found.mean, found.std, found.slope), wanted, strict=True))
    assert 0 < off < found.error < 0.1


@pytest.mark.parametrize("nodes", [2, 64, 128, 180])
def test_polynomials_are_integrated_exactly(nodes):
    """E[Z] = 0, Var[Z] = 1; for Z^2 - Z they are 1, 3 and E[(2 Z - 1)^2] = 5."""
    line = ActivationConstants.of(lambda z: z, nodes=nodes)
    assert (line.mean, line.std, line.slope) == pytest.approx((0, 1, 1), abs=1e-13)
    if nodes > 2:
        found = ActivationConstants.of(lambda z: z * z - z, nodes=nodes)
        assert (found.mean, found.std, found.slope) == pytest.approx((1, math.sqrt(3), math.sqrt(5)), abs=1e-12)


def test_the_sine_has_its_closed_form():
    """E[sin Z] = 0, E[sin^2 Z] = (1 - e^-2) / 2, E[cos^2 Z] = (1 + e^-2) / 2."""
    found = ActivationConstants.of(torch.sin)
    wanted = (0.0, math.sqrt((1 - math.exp(-2)) / 2), math.sqrt((1 + math.exp(-2)) / 2))
    assert (found.mean, found.std, found.slope) == pytest.approx(wanted, abs=1e-14)


def test_the_spread_keeps_its_digits_however_far_the_mean():
    found = ActivationConstants.of(lambda z: z + 1e6)
    assert (found.mean, found.std, found.slope) == pytest.approx((1e6, 1, 1), rel=1e-9)


def test_they_are_the_same_where_gradients_are_off():
    with torch.no_grad():
        quiet = ActivationConstants.of(torch.tanh)
    assert quiet == ActivationConstants.of(torch.tanh)


@pytest.mark.parametrize("activation", [torch.sign, torch.zeros_like, lambda z: torch.zeros_like(z) * z, torch.log])
def test_an_activation_without_slope_spread_or_moments_is_refused(activation):
    with pytest.raises(ValueError, match=r"needs finite moments, a spread and a slope.*got mean=.*neither constant"):
        ActivationConstants.of(activation)


def test_an_activation_that_learns_is_refused():
    with pytest.raises(ValueError, match=r"needs moments that stay; got PReLU.*\['weight'\].*without parameters"):
        ActivationConstants.of(nn.PReLU())


@pytest.mark.parametrize("nodes", [0, 1, 181])
def test_a_number_of_nodes_out_of_range_is_refused(nodes):
    with pytest.raises(ValueError, match=rf"between 2 and 180; got {nodes}; leave it out"):
        ActivationConstants.of(torch.tanh, nodes=nodes)


def test_the_nodes_of_numpy_still_hold_at_the_largest_number_allowed():
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    assert [float(weights @ nodes**k / weights.sum()) for k in (0, 2, 4, 6)] == pytest.approx([1, 1, 3, 15], rel=1e-12)
