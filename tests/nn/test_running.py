"""The running statistics follow the batches as those of torch do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.functional import Moments, batch_moments
from normlens.nn.running import averaging_factor, update_running


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_running_statistics_are_those_of_torch_batch_by_batch(draw, momentum):
    theirs = nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    ours = Moments(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    for batches in (1, 2, 3):
        x = draw(4, 3, 2) * batches + batches
        theirs(x)
        batch = Moments(*(m.flatten() for m in batch_moments(x)))
        ours = update_running(ours, batch, count=8, factor=averaging_factor(momentum, batches))
        assert_close(ours.mean, theirs.running_mean, rtol=1e-13, atol=1e-13)
        assert_close(ours.var, theirs.running_var, rtol=1e-13, atol=1e-13)


def test_without_momentum_the_running_mean_is_the_plain_mean_of_all_batches(draw):
    means = draw(5, 3)
    running = Moments(draw(3), draw(3))
    for k, mean in enumerate(means, start=1):
        running = update_running(running, Moments(mean, mean), count=2, factor=averaging_factor(None, k))
    assert_close(running.mean, means.mean(0), rtol=1e-13, atol=1e-13)
    assert_close(running.var, 2 * means.mean(0), rtol=1e-13, atol=1e-13)  # unbiased: count / (count - 1) = 2


def test_an_update_leaves_its_arguments_alone_and_keeps_their_dtype():
    running = Moments(torch.zeros(2, dtype=torch.float16), torch.ones(2, dtype=torch.float16))
    batch = Moments(torch.ones(2), torch.full((2,), 4.0))
    moved = update_running(running, batch, count=4, factor=0.5)
    assert [m.dtype for m in moved] == [torch.float16, torch.float16]
    assert running.mean.tolist() == [0.0, 0.0]
    assert batch.var.tolist() == [4.0, 4.0]


def test_a_single_value_has_no_unbiased_variance():
    one = Moments(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"more than one value per statistic; got count=1; skip this batch's update"):
        update_running(one, one, count=1, factor=0.1)
