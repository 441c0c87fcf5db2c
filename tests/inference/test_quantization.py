"""Quantized batch norm is the rounded batch norm, on every integer of its range."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from normlens.inference.quantization import QuantizedBatchNorm, quantize_affine, quantize_channels
from normlens.nn import BatchNorm, BatchRenorm, GhostBatchNorm, MeanOnlyBatchNorm, SwitchableNorm

INT8 = torch.arange(-128, 128)


def every_input(channels, *spatial):
    """All of int8, in every channel: (256, C, *spatial)."""
    return INT8.to(torch.int8).reshape(-1, 1, *(1,) * len(spatial)).expand(256, channels, *spatial)


def reference(norm, s_x, s_y, x, y_min, y_max):
    """Round the layer's own float64 answer, halves upward."""
    y = norm.double()(x.double() * s_x) / s_y
    return torch.floor(y + 0.5).clamp(y_min, y_max).long()


@pytest.mark.parametrize(
    ("norm", "space"),
    [
        (nn.BatchNorm1d(16), ()),
        (nn.BatchNorm2d(16, affine=False), (1, 2)),
        (BatchNorm(16), (3,)),
        (GhostBatchNorm(16), ()),
        (BatchRenorm(16), ()),
        (MeanOnlyBatchNorm(16), ()),
    ],
)
def test_on_every_value_of_int8_it_is_the_rounded_float_layer(norm, space, settle):
    norm = settle(norm)
    s_x, s_y = 0.0371, 0.0263
    quantized = QuantizedBatchNorm.from_float(norm, s_x, s_y, 128, -128, 127)
    x = every_input(16, *space)
    y = quantized(x)
    assert quantized.inexact == 0
    assert y.dtype == torch.int64
    assert torch.equal(y, reference(norm, s_x, s_y, x, -128, 127))
    assert {int(y.min()), int(y.max())} <= set(range(-128, 128))


def test_without_clipping_it_is_exact_too(settle):
    norm = settle(BatchNorm(8))
    quantized = QuantizedBatchNorm.from_float(norm, 0.05, 0.01)
    x = every_input(8)
    assert torch.equal(quantized(x), reference(norm, 0.05, 0.01, x, None, 2**40))


def test_the_common_shift_is_the_least_with_which_every_channel_is_exact():
    scales, shifts = [0.37, 0.7310586, Fraction(1, 3), -0.2], [0.2, -0.123, 0.1, 3.7]
    alone = [quantize_affine(k, b, 31) for k, b in zip(scales, shifts, strict=True)]
    together = quantize_channels(scales, shifts, 31)
    assert {one.shift for one in together} == {max(one.shift for one in alone)}
    assert all(one.exact for one in together)
    for one, k, b in zip(together, scales, shifts, strict=True):
        assert [one(x) for x in range(-31, 32)] == [
            math.floor(Fraction(k) * x + Fraction(b) + Fraction(1, 2)) for x in range(-31, 32)
        ]


def test_channels_that_need_more_than_the_largest_shift_are_counted():
    channels = quantize_channels([0.37, 3.0], [0.2, -2.0], 7, max_shift=2)
    assert QuantizedBatchNorm(channels, 7).inexact == 1


def test_negative_sums_round_down_and_halves_up():
    """C's division would give 0 for -1/2 and PyTorch's round would give 2 for 1.5 and for 2.5."""
    quantized = QuantizedBatchNorm(quantize_channels([0.5], [0.0], 5), 5)
    x = torch.arange(-5, 6).reshape(-1, 1)
    assert quantized(x).flatten().tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]


def test_it_has_no_floating_point_number_in_it_and_is_saved_and_copied(settle):
    norm = settle(BatchNorm(4))
    quantized = QuantizedBatchNorm.from_float(norm, 0.05, 0.05)
    assert {buffer.dtype for buffer in quantized.state_dict().values()} == {torch.int64}
    assert not list(quantized.parameters())
    x = every_input(4)
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    assert f"4, shift={quantized.shift}, x_max=128" in repr(quantized)


def test_the_float_layer_stays_as_it_is(settle, state_of):
    norm = settle(BatchNorm(4))
    before = state_of(norm)
    QuantizedBatchNorm.from_float(norm, 0.05, 0.05)(every_input(4))
    assert state_of(norm) == before


def test_inputs_that_it_is_not_made_for_are_refused(settle):
    quantized = QuantizedBatchNorm.from_float(settle(BatchNorm(4)), 0.05, 0.05, x_max=127)
    with pytest.raises(ValueError, match=r"integer input; got torch\.float32"):
        quantized(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"4 channels at dim 1; got \(2, 3\)"):
        quantized(torch.zeros(2, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match="up to x_max=127 in magnitude; got 128"):
        quantized(torch.full((2, 4), -128, dtype=torch.int8))


def test_layers_and_scales_that_it_cannot_treat_are_refused(settle):
    with pytest.raises(ValueError, match="one scale and one shift per channel"):
        QuantizedBatchNorm.from_float(SwitchableNorm(4), 0.1, 0.1)
    with pytest.raises(ValueError, match="with running statistics; got BatchNorm"):
        QuantizedBatchNorm.from_float(BatchNorm(4, track_running_stats=False), 0.1, 0.1)
    for scales in ((0.0, 1.0), (1.0, -1.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="scales above 0 and finite"):
            QuantizedBatchNorm.from_float(BatchNorm(4), *scales)
    with pytest.raises(ValueError, match=r"one shift for all of its channels.*got shifts \[0, 3\]"):
        QuantizedBatchNorm([quantize_affine(1.0, 0.0, 7), quantize_affine(0.37, 0.2, 7)], 7)
    with pytest.raises(ValueError, match=r"one channel at least; got shifts \[\]"):
        QuantizedBatchNorm([], 7)
