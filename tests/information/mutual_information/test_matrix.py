"""Channels as the whole-matrix estimators take them."""

from __future__ import annotations

import math

import pytest
import torch

from normlens.information.mutual_information.matrix import channels_of


def test_channels_are_rows_in_float64_without_a_sign_of_zero_and_without_their_graph():
    samples = torch.tensor([[1.0, -0.0], [2.0, 3.0]], dtype=torch.float16, requires_grad=True)
    channels, finite = channels_of(samples)
    assert channels.dtype == torch.float64
    assert not channels.requires_grad
    assert torch.equal(channels, torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64))
    assert not channels[1, 0].signbit()
    assert finite.all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_channel_that_is_not_finite_is_zeros_and_said_to_be(bad):
    channels, finite = channels_of(torch.tensor([[1.0, 5.0], [bad, 6.0]]))
    assert finite.tolist() == [False, True]
    assert channels.tolist() == [[0, 0], [5, 6]]


@pytest.mark.parametrize("shape", [(4,), (1, 3), (5, 3, 2)], ids=str)
def test_other_shapes_are_refused_with_what_to_do(shape):
    with pytest.raises(ValueError, match=r"need shape \(N, C\) with N > 1; got .*; take one position"):
        channels_of(torch.zeros(shape))
