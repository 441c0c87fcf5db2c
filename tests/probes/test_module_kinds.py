"""Modules are what they do, and a nonlinearity said to be flat below zero passes no gradient there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlens import catalog
from normlens.nn import BatchKalmanNorm, KalmanSequential
from normlens.nn.weighted import NormPropLinear
from normlens.probes.module_kinds import flat_below_zero, is_nonlinearity, is_normalization, is_weight_layer

NORMALIZATIONS = [
    nn.BatchNorm1d(2),
    nn.BatchNorm3d(2),
    nn.SyncBatchNorm(2),
    nn.InstanceNorm2d(2),
    nn.GroupNorm(1, 2),
    nn.LayerNorm(2),
    nn.RMSNorm(2),
]
WEIGHTS = [nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1)]
FLAT = [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Threshold(0.0, 0.0)]
SMOOTH = [nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Softplus()]
OTHER = [nn.Dropout(), nn.Identity(), nn.Sequential(nn.ReLU()), nn.MaxPool2d(2), nn.Sigmoid(), nn.LSTM(2, 2)]
KINDS = {
    is_normalization: NORMALIZATIONS,
    is_weight_layer: WEIGHTS,
    is_nonlinearity: FLAT + SMOOTH,
    flat_below_zero: FLAT,
}


@pytest.mark.parametrize("says", KINDS, ids=lambda says: says.__name__)
@pytest.mark.parametrize("module", NORMALIZATIONS + WEIGHTS + FLAT + SMOOTH + OTHER, ids=repr)
def test_every_module_is_of_its_kind_and_of_no_other(says, module):
    assert says(module) == any(module is member for member in KINDS[says])


@pytest.mark.parametrize("module", FLAT + SMOOTH, ids=repr)
def test_flat_below_zero_is_what_the_gradient_says(module):
    x = torch.tensor([-3.0, -1.0, -0.5, -0.01], requires_grad=True)
    module(x * 1.0).sum().backward()
    assert flat_below_zero(module) == (not x.grad.any())


@pytest.mark.parametrize("name", catalog.names("normlens.nn"))
def test_every_layer_of_normlens_nn_is_a_normalization(name):
    assert is_normalization(catalog.load("normlens.nn", name)(4))


def test_what_carries_weights_or_other_layers_is_none():
    generator = torch.Generator().manual_seed(0)
    assert not is_normalization(NormPropLinear(2, 3, generator=generator))
    assert not is_normalization(KalmanSequential(BatchKalmanNorm(4)))


def test_a_subclass_is_of_the_kind_of_its_class():
    assert is_normalization(type("MyNorm", (nn.BatchNorm2d,), {})(2))
    assert is_weight_layer(type("MyLinear", (nn.Linear,), {})(2, 2))
