"""What a loss that does not know the length of a stored filter has to keep, whatever made it so."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.func import grad, hessian
from torch.nn.utils import skip_init
from torch.testing import assert_close

from normlens.nn.parametrize import centered_weight_norm, unit_norm, weight_norm, weight_standardization

MAPS = {
    "weight_norm": weight_norm,
    "unit_norm": unit_norm,
    "centered_weight_norm": functools.partial(centered_weight_norm, eps=0.0),
    **{f"ws {v}": functools.partial(weight_standardization, variant=v, eps=0.0) for v in ("bcn", "ws", "tf")},
}
every_map = pytest.mark.parametrize("reparametrize", MAPS.values(), ids=MAPS)


@pytest.fixture
def loss_and_point(draw, as_function):
    """A loss of the stored directions, flattened, and where they stand; a gain stays where it is."""

    def make(reparametrize):
        layer = skip_init(nn.Linear, 4, 3, dtype=torch.float64)
        layer.weight.data = draw(3, 4) + 0.5
        weight, (*gain, v) = as_function(reparametrize(layer))
        x, readout = draw(6, 4), draw(6, 3)

        def loss(flat):
            return ((x @ weight(*gain, flat.view(3, 4)).T).tanh() * readout).sum()

        return loss, v.flatten()

    return make


@every_map
def test_the_gradient_is_orthogonal_to_each_filter(loss_and_point, reparametrize):
    loss, w = loss_and_point(reparametrize)
    along = (w * grad(loss)(w)).view(3, 4).sum(1)
    assert_close(along, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)


@every_map
@pytest.mark.parametrize("c", [0.1, 3.0])
def test_gradient_and_hessian_fall_with_the_first_and_second_power_of_the_length(loss_and_point, reparametrize, c):
    loss, w = loss_and_point(reparametrize)
    assert_close(loss(c * w), loss(w), rtol=1e-13, atol=1e-14)
    assert_close(grad(loss)(c * w), grad(loss)(w) / c, rtol=1e-12, atol=1e-13 / c)
    assert_close(hessian(loss)(c * w), hessian(loss)(w) / c**2, rtol=1e-11, atol=1e-13 / c**2)


@every_map
def test_the_hessian_takes_the_weights_to_minus_the_gradient_and_is_never_positive_definite(
    loss_and_point, reparametrize
):
    loss, w = loss_and_point(reparametrize)
    h = hessian(loss)(w)
    assert_close(h @ w, -grad(loss)(w), rtol=1e-12, atol=1e-13)
    assert abs(w @ h @ w) < 1e-13
    assert torch.linalg.eigvalsh(h)[0] <= 1e-13


def test_with_eps_the_invariance_is_lost(loss_and_point):
    """The control: the default eps of 1e-5 is seen from 1e-13 away."""
    loss, w = loss_and_point(weight_standardization)
    assert abs(w @ grad(loss)(w)) > 1e-9
