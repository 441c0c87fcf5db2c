"""The block's Jacobian is that of autograd, and the units that are nearest to a singularity are found."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from normlens.probes.unit_block import HiddenLayer, block_jacobian, nearest_units
from normlens.probes.unit_derivatives import layer_derivatives
from normlens.risk import EmpiricalRisk
from normlens.run.capture import capture


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network():
    layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2, padding=1), nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(27, 2)).double()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed)
    return model


def hidden(model, writer, act, reader, x):
    risk = EmpiricalRisk(model, nn.functional.mse_loss, (x, normal(len(x), 2, seed=9)), mode="eval")
    slopes, seen = layer_derivatives(risk, [writer, reader]), capture(risk)
    modules = dict(model.named_modules())
    return HiddenLayer(
        modules[writer], modules[reader], seen[act], slopes[writer], slopes[reader], True, "", pooled=False
    )


def test_the_rows_are_the_outputs_derivatives_by_incoming_and_outgoing_weights_of_the_units():
    model, x = network(), normal(3, 2, 6, 6, seed=5)
    for writer, act, reader, places in (("0", "1", "3", 4), ("3", "4", "6", 9)):
        layer = hidden(model, writer, act, reader, x)
        units = torch.tensor([0, 2])
        found = block_jacobian(layer, units)
        named = dict(model.named_parameters())
        full = jacrev(lambda theta: functional_call(model, theta, (x,)))({k: v.detach() for k, v in named.items()})
        rows = len(x) * 2
        into = full[f"{writer}.weight"].reshape(rows, layer.units, -1)[:, units]
        bias = full[f"{writer}.bias"].reshape(rows, layer.units, 1)[:, units]
        out = full[f"{reader}.weight"].reshape(rows, len(layer.reader.weight), layer.units, -1).movedim(2, 1)[:, units]
        assert out.shape[-1] == places
        expected = torch.cat([into, bias, out.flatten(2)], 2).flatten(1)
        # The directions of the outputs are a basis of its own: products of rows over all samples agree.
        assert_close(found.T @ found, expected.T @ expected, rtol=1e-9, atol=1e-9)
        assert found.shape == (rows, 2 * (layer.incoming + layer.outgoing))


def test_silent_cut_off_and_overlapping_units_are_the_nearest():
    model, x = network(), normal(3, 2, 6, 6, seed=5)
    layer = hidden(model, "0", "1", "3", x)
    with torch.no_grad():
        model[3].weight[:, 2] = 1e-3
    assert nearest_units(layer, 1).tolist() == [2]
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = -2 * model[0].weight[1], -2 * model[0].bias[1]
    assert nearest_units(layer, 3).tolist() == [1, 2, 3]
    assert nearest_units(layer, 9).tolist() == [0, 1, 2, 3]
