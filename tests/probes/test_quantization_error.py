"""The errors are those of the rounded layer by hand, and the law of rounding holds for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.inference.quantization import quantize_channels
from normlens.nn import BatchNorm, GroupNorm, SwitchableNorm
from normlens.probes.quantization_error import QuantizationError
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model: nn.Module, x: Tensor, mode: str = "eval", **settings: Any) -> dict[Any, Any]:
    risk = EmpiricalRisk(model.double(), lambda outputs, targets: outputs.mean(), x, mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(r.layer, r.name): r.value for r in QuantizationError(**settings)(step)}


def norm_of(channels: int, seed: int = 0) -> BatchNorm:
    norm = BatchNorm(channels).double().eval()
    norm.weight.data.copy_(normal(channels, seed=seed).abs() + 0.5)
    norm.bias.data.copy_(normal(channels, seed=seed + 1))
    norm.running_mean.copy_(normal(channels, seed=seed + 2))
    norm.running_var.copy_(normal(channels, seed=seed + 3).abs() + 0.5)
    return norm


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_the_errors_are_those_of_rounded_numbers_by_hand(bits):
    norm, x = norm_of(5), 2 * normal(60, 5, 3) + 1
    found, largest = read(nn.Sequential(norm), x, bits=bits), 2 ** (bits - 1) - 1
    y = norm(x).detach()
    s_x, s_y = x.abs().max() / largest, y.abs().max() / largest
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    k, b = (gain * s_x / s_y)[:, None], ((norm.bias - gain * norm.running_mean) / s_y).detach()[:, None]
    integers = (k * (x / s_x).round() + b + 0.5).floor().clamp(-largest, largest)
    error = integers - y / s_y
    assert found["0", "rms"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-9)
    assert found["0", "max"] == pytest.approx(error.abs().max().item(), rel=1e-9)
    np.testing.assert_allclose(found["0", "channel_rms"], error.square().mean((0, 2)).sqrt(), rtol=1e-9)


def test_evenly_spread_errors_of_input_and_output_add_up_to_1_plus_the_squared_gain_over_12():
    norm = BatchNorm(1, affine=False).double()
    n = 200_001
    x = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    norm.running_mean.fill_(0.01234)
    found = read(nn.Sequential(norm), x)
    y = norm.eval()(x)
    k = (x.abs().max() / y.abs().max() / math.sqrt(1 + 1e-5)).item()
    # 255 inputs: of so many evenly spread rounding errors the mean square is off by 1/sqrt(5 * 255) of itself.
    assert found["0", "rms"] ** 2 == pytest.approx((1 + k**2) / 12, rel=5 / math.sqrt(5 * 255))
    assert found["0", "max"] <= (1 + k) / 2


def test_a_layer_that_does_nothing_rounds_its_input_and_nothing_else():
    norm = BatchNorm(2, eps=0.0, affine=False).double()
    x = torch.linspace(-1, 1, 12_701, dtype=torch.float64)[:, None].repeat(1, 2)
    found = read(nn.Sequential(norm), x)
    assert found["0", "shift"] == 0
    assert found["0", "rms"] == pytest.approx(1 / math.sqrt(12), rel=1e-3)  # 100 inputs to the step, evenly spaced
    assert found["0", "max"] == pytest.approx(0.5, abs=1e-9)


def test_the_shift_is_the_least_common_exact_one():
    norm, x = norm_of(5), 2 * normal(60, 5, 3) + 1
    y, gain = norm(x).detach(), (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    s_x, s_y = x.abs().max().item() / 127, y.abs().max().item() / 127
    k, b = gain * (s_x / s_y), (norm.bias - gain * norm.running_mean).detach() / s_y
    channels = quantize_channels(k.tolist(), b.tolist(), 127, -127, 127)
    found = read(nn.Sequential(norm), x)
    assert found["0", "shift"] == channels[0].shift
    assert found["0", "inexact"] == 0


def test_every_batch_norm_that_is_called_is_measured_on_its_own_input_and_counted():
    first, second = norm_of(4), norm_of(4, seed=9)
    model = nn.Sequential(first, nn.ReLU(), second, GroupNorm(4, groups=2), SwitchableNorm(4))
    x = normal(30, 4, 3)
    found = read(model, x)
    assert found["", "layers"] == 2
    alone = read(nn.Sequential(second), first(x).relu().detach())
    assert {layer for layer, _ in found} == {"", "0", "2"}
    assert found["2", "rms"] == alone["0", "rms"]
    assert read(model, x, layers="2")["2", "max"] == found["2", "max"]


def test_channels_are_dimension_1_also_behind_a_linear_layer_over_the_last():
    linear, norm = nn.Linear(7, 7).double(), norm_of(7)
    x = normal(30, 7, 7)
    found = read(nn.Sequential(linear, norm), x)
    assert found["1", "rms"] == read(nn.Sequential(norm), linear(x).detach())["0", "rms"]


def test_it_is_about_inference_whatever_the_mode_of_the_training():
    model, x = nn.Sequential(norm_of(4), nn.ReLU(), norm_of(4, seed=9)), normal(30, 4, 3)
    found = [read(model, x, mode) for mode in ("train", "eval")]
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][key])


def test_a_model_without_batch_norm_has_none_to_count():
    assert read(nn.Linear(4, 3), normal(30, 4)) == {("", "layers"): 0}


def test_inputs_that_are_all_zero_have_a_scale_too():
    found = read(nn.Sequential(BatchNorm(2, affine=False)), torch.zeros(5, 2).double())
    assert (found["0", "rms"], found["0", "max"]) == (0, 0)


def test_what_cannot_be_quantized_is_refused():
    x = normal(30, 4)
    with pytest.raises(ValueError, match="bits from 2 to 16; got 1"):
        read(nn.Sequential(norm_of(4)), x, bits=1)
    sick = norm_of(4)
    sick.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="parameters must be finite"):
        read(nn.Sequential(sick), x)
    with pytest.raises(ValueError, match=r"activations must be finite.*those of 0 are not"):
        read(nn.Sequential(norm_of(4)), x * math.inf)
    with pytest.raises(ValueError, match="matches none of"):
        read(nn.Sequential(norm_of(4)), x, layers="nothing")
