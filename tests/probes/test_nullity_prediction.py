"""The predicted rank is the dense one where units are independent, and never below it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens.probes.nullity_prediction import predict_rank
from normlens.probes.unit_block import HiddenLayer, block_jacobian
from normlens.probes.unit_derivatives import layer_derivatives
from normlens.risk import EmpiricalRisk
from normlens.run.capture import capture


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden(act, *, between=(), norm="", units=4, image=True, samples=40, outputs=3):
    """A convolution or linear layer of units between two layers, on generic data."""
    first = nn.Conv2d(2, units, 3) if image else nn.Linear(5, units)
    last = nn.Conv2d(units, outputs, 2) if image else nn.Linear(units, outputs)
    model = nn.Sequential(first, act, *between, last).double()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed)
    x = normal(samples, 2, 5, 5, seed=8) if image else normal(samples, 5, seed=8)
    y = normal(*model(x).shape, seed=9)
    risk = EmpiricalRisk(model, nn.functional.mse_loss, (x, y), mode="eval")
    reader = str(len(model) - 1)
    slopes, seen = layer_derivatives(risk, ["0", reader]), capture(risk)
    return HiddenLayer(model[0], model[-1], seen["1"], slopes["0"], slopes[reader], True, norm, pooled=False)


def ranks(layer, tolerance=1e-10):
    units = torch.arange(layer.units)
    values = torch.linalg.svdvals(block_jacobian(layer, units)).square()
    return predict_rank(layer, units, tolerance).rank, int((values > tolerance * values[0]).sum())


@pytest.mark.parametrize("act", [nn.Tanh(), nn.GELU(), nn.ReLU(), nn.LeakyReLU(0.2), nn.Softplus()])
@pytest.mark.parametrize("image", [True, False])
def test_generic_units_have_the_predicted_rank(act, image):
    predicted, rank = ranks(hidden(act, image=image))
    assert predicted == rank


def test_one_scale_a_unit_is_lost_to_homogeneous_nonlinearities_alone():
    for act, homogeneous in ((nn.ReLU(), 1), (nn.LeakyReLU(), 1), (nn.GELU(), 0), (nn.ReLU6(), 0), (nn.Tanh(), 0)):
        layer = hidden(act, image=False)
        parameters = layer.units * (layer.incoming + layer.outgoing)
        assert predict_rank(layer, torch.arange(layer.units), 1e-10).regular == parameters - homogeneous * layer.units


def test_units_that_are_linear_on_the_data_depend_on_each_other_and_have_less_than_predicted():
    layer = hidden(nn.ReLU(), image=False)
    with torch.no_grad():
        layer.writer.bias[:] = 40.0
    made = nn.Sequential(layer.writer, nn.ReLU(), layer.reader)
    risk = EmpiricalRisk(made, nn.functional.mse_loss, (layer.written.inputs, normal(40, 3)), mode="eval")
    slopes, seen = layer_derivatives(risk, ["0", "2"]), capture(risk)
    predicted, rank = ranks(HiddenLayer(made[0], made[2], seen["1"], slopes["0"], slopes["2"], True, "", pooled=False))
    assert rank == 6 * 3  # all affine maps of what it sees to the outputs
    assert predicted > rank


def test_units_that_nearly_overlap_do_so_within_the_root_of_the_tolerance():
    for angle, overlapping, expected in ((1e-2, 0, 36), (1e-6, 2, 36 - 3)):
        layer = hidden(nn.Tanh(), image=False)
        with torch.no_grad():
            layer.writer.weight[0] = layer.writer.weight[1] + angle * normal(5, seed=11)
            layer.writer.bias[0] = layer.writer.bias[1]
        made = nn.Sequential(layer.writer, nn.Tanh(), layer.reader)
        risk = EmpiricalRisk(made, nn.functional.mse_loss, (layer.written.inputs, normal(40, 3)), mode="eval")
        slopes, seen = layer_derivatives(risk, ["0", "2"]), capture(risk)
        close = HiddenLayer(made[0], made[2], seen["1"], slopes["0"], slopes["2"], True, "", pooled=False)
        assert predict_rank(close, torch.arange(4), 1e-10).overlapping == overlapping
        assert ranks(close) == (expected, expected)


def test_behind_a_norm_in_which_units_meet_nothing_is_predicted():
    assert predict_rank(hidden(nn.Tanh(), norm="GroupNorm"), torch.arange(2), 1e-10) is None
