from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normlens.models.recurrence import LSTMRecurrence, OverTime, as_sequence, sequence_shape
from normlens.nn.batch_norm import BatchNorm
from normlens.nn.instance_norm import InstanceNorm
from normlens.nn.layer_norm import LayerNorm
from normlens.nn.sequence_batch_norm import SequenceBatchNorm

TOLERANCE = 1e3 * torch.finfo(torch.float64).eps


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_time_step_is_a_row_with_all_its_channels_or_a_pixel() -> None:
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows, pixels = as_sequence(images, "rows"), as_sequence(images, "pixels")
    assert (sequence_shape((3, 4, 5), "rows"), sequence_shape((3, 4, 5), "pixels")) == ((4, 15), (20, 3))
    assert (rows.shape, pixels.shape) == ((2, 4, 15), (2, 20, 3))
    for t in range(4):
        assert torch.equal(rows[:, t], images[:, :, t].flatten(1))
        for column in range(5):
            assert torch.equal(pixels[:, 5 * t + column], images[:, :, t, column])


def test_an_unknown_reading_is_refused() -> None:
    reading: Any = "columns"
    with pytest.raises(ValueError, match=r"reading must be 'rows' .* or 'pixels' .*, got 'columns': choose one"):
        sequence_shape((1, 8, 8), reading)


def test_the_recurrence_is_torchs_lstm_behind_its_input_with_one_on_the_forget_gates() -> None:
    ours = LSTMRecurrence(4, generator=torch.Generator().manual_seed(0)).double()
    theirs = nn.LSTM(16, 4, batch_first=True, dtype=torch.float64)
    forget = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64).repeat_interleave(4)
    state = {"weight_ih_l0": torch.eye(16), "bias_ih_l0": forget, "bias_hh_l0": torch.zeros(16)}
    theirs.load_state_dict({**state, "weight_hh_l0": ours.weight_hh.detach()})
    gates, readout = draw(3, 6, 16), draw(3, 6, 4)
    results = []
    for layer, weight in ((ours, ours.weight_hh), (theirs, theirs.weight_hh_l0)):
        leaf = gates.clone().requires_grad_()
        out = layer(leaf)
        y = out if isinstance(out, torch.Tensor) else out[0]
        results.append([y, *torch.autograd.grad(y, [leaf, weight], readout)])
    torch.testing.assert_close(*results, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_recurrence_begins_orthogonal_at_each_gate() -> None:
    weight = LSTMRecurrence(5, generator=torch.Generator().manual_seed(0)).weight_hh.detach()
    for gate in weight.chunk(4):
        near = 100 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(gate @ gate.T, torch.eye(5), rtol=0, atol=near)


def test_layer_norm_over_time_is_torchs_on_the_last_dimension() -> None:
    x = draw(3, 6, 4) * 2 + 1
    expected = nn.functional.layer_norm(x, (4,))
    actual = OverTime(LayerNorm(4, dtype=torch.float64))(x)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_batch_norm_over_time_pools_the_steps_as_sequence_batch_norm_does() -> None:
    x = draw(3, 6, 4) * 2 + 1
    pooled = torch.nn.functional.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)
    for layer in (BatchNorm(4, dtype=torch.float64), SequenceBatchNorm(4, dtype=torch.float64)):
        torch.testing.assert_close(OverTime(layer)(x), pooled, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_layer_that_knows_of_time_gets_the_steps_apart() -> None:
    x = draw(3, 6, 4) * 2 + 1
    layer = SequenceBatchNorm(4, mode="frame", max_length=6, dtype=torch.float64)
    expected = torch.stack([torch.nn.functional.batch_norm(step, None, None, training=True) for step in x.unbind(1)], 1)
    torch.testing.assert_close(OverTime(layer)(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_norm_that_needs_space_is_refused_and_those_that_fit_are_named() -> None:
    match = r"features without space, \(samples and steps, 4\): InstanceNorm\(4\) needs .* got \(18, 4\).* Norms that "
    with pytest.raises(ValueError, match=match + r"fit: .*\bbatch_norm, .*layer_norm, .*, recurrent_batch_norm") as got:
        OverTime(InstanceNorm(4, dtype=torch.float64))(draw(3, 6, 4))
    assert "instance_norm" not in str(got.value).partition("Norms that fit:")[2]
