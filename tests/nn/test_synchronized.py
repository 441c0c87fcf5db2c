"""The moments of shards of any sizes combine to those of the whole, in one process and in two."""

from __future__ import annotations

import ast
import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.functional import Moments, batch_moments
from normlens.nn.synchronized import synchronized_moments, total_moments
from support.distributed_batch_norm import FIRST_SHARDS, SAMPLES, numbers

PROGRAM = Path(__file__).parent.parent / "support" / "distributed_batch_norm.py"


@pytest.fixture(scope="module")
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of one rank, this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def moments_of_shards(x, sizes):
    shards = [batch_moments(part) for part in x.split(sizes)]
    counts = torch.tensor([float(part.numel() // x.shape[1]) for part in x.split(sizes)], dtype=x.dtype)
    return counts, Moments(*(torch.stack([getattr(s, key).flatten() for s in shards]) for key in ("mean", "var")))


@pytest.mark.parametrize("sizes", [[12], [6, 6], [1, 11], [3, 4, 5], [1] * 12])
def test_moments_of_unequal_shards_combine_to_those_of_the_concatenated_batch(draw, sizes):
    x = draw(12, 4, 3) * torch.arange(1.0, 13.0).reshape(12, 1, 1) + torch.arange(12.0).reshape(12, 1, 1)
    got, want = total_moments(*moments_of_shards(x, sizes)), batch_moments(x)
    assert_close(got.mean, want.mean.flatten(), rtol=1e-14, atol=1e-14)
    assert_close(got.var, want.var.flatten(), rtol=1e-14, atol=1e-14)


def test_the_variance_of_0_0_and_6_is_the_mean_variance_plus_the_variance_of_the_means():
    shards = Moments(torch.tensor([[0.0], [6.0]]), torch.zeros(2, 1))
    total = total_moments(torch.tensor([2.0, 1.0]), shards)
    assert_close([m.item() for m in total], [2.0, 8.0], rtol=1e-6, atol=0)  # (4 + 4 + 16) / 3; inside the shards 0


def test_a_shard_of_nothing_counts_for_nothing():
    shards = Moments(torch.tensor([[3.0], [0.0]]), torch.tensor([[5.0], [0.0]]))
    assert [m.item() for m in total_moments(torch.tensor([4.0, 0.0]), shards)] == [3.0, 5.0]


def test_a_mean_of_a_million_deviations_costs_no_more_digits_than_the_mean_has(draw):
    x = draw(12, 4) + 1e6
    got = total_moments(*moments_of_shards(x, [5, 7]))
    assert_close(got.var, x.var(0, correction=0), rtol=1e-8, atol=0)  # 1e6 * 2e-16 per value, relative to 1


def test_derivatives_of_combined_moments_are_those_of_the_whole_batch(draw, double_backward):
    def loss(combine):
        return lambda x: sum((m.flatten().sin() * w).sum() for m, w in zip(combine(x), weights, strict=True))

    x, v, weights = draw(7, 3), draw(7, 3), draw(2, 3)
    got, want = (
        double_backward(loss(combine), (x,), (v,))
        for combine in (lambda x: total_moments(*moments_of_shards(x, [2, 5])), batch_moments)
    )
    assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_on_one_rank_the_moments_are_those_of_the_batch_and_count_its_values(draw, alone):
    x = draw(5, 3, 2)
    got, count = synchronized_moments(x, alone)
    assert count == 10
    assert_close(got, batch_moments(x), rtol=1e-15, atol=1e-15)


def test_half_precision_is_pooled_in_float32(draw, alone):
    x = (draw(64, 3) * 500 + 1000).half()
    got, _ = synchronized_moments(x, alone)
    assert [m.dtype for m in got] == [torch.float32] * 2
    assert_close(got.var.flatten().double(), x.double().var(0, correction=0), rtol=1e-5, atol=0)


def test_synchronized_batch_norm_on_one_rank_is_batch_norm(draw, alone):
    plain = BatchNorm(4, dtype=torch.float64, momentum=None)
    plain.weight.data, plain.bias.data = draw(4), draw(4)
    synchronized = BatchNorm(4, dtype=torch.float64, momentum=None, process_group=alone)
    synchronized.load_state_dict(plain.state_dict())
    for training in (True, True, False):
        x, g, found = draw(5, 4, 3) * 2 + 1, draw(5, 4, 3), []
        for layer in (plain.train(training), synchronized.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            found.append([y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g), *layer.buffers()])
        assert_close(*found, rtol=1e-12, atol=1e-12)


def test_second_derivatives_through_the_sum_over_ranks_are_those_of_batch_norm(
    draw, alone, double_backward, forward_over_reverse
):
    at, v, readout = (draw(5, 3, 2),), (draw(5, 3, 2),), draw(5, 3, 2)

    def loss(group):
        layer = BatchNorm(3, affine=False, track_running_stats=False, dtype=torch.float64, process_group=group)
        return lambda x: (layer(x).tanh() * readout).sum()

    want = double_backward(loss(None), at, v)
    assert_close(double_backward(loss(alone), at, v), want, rtol=1e-12, atol=1e-12)
    assert_close(forward_over_reverse(loss(alone), at, v), want, rtol=1e-12, atol=1e-12)


def test_a_synchronized_layer_can_be_copied_and_keeps_its_group(alone):
    layer = copy.deepcopy(BatchNorm(3, process_group=alone))
    assert layer.process_group is alone
    assert "process_group=" in repr(layer)


def test_one_value_per_channel_on_all_ranks_together_is_refused(alone):
    with pytest.raises(ValueError, match=r"BatchNorm\(3\) needs more than one value.*1 per channel; use a larger"):
        BatchNorm(3, process_group=alone)(torch.ones(1, 3))


@pytest.mark.slow
def test_two_processes_give_the_outputs_gradients_and_buffers_of_one_whatever_their_shares():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = ast.literal_eval(result.stdout.strip().splitlines()[-1])
    assert set(found) == set(FIRST_SHARDS)
    whole = numbers(None, slice(0, SAMPLES))
    for name, values in found.items():
        assert values == pytest.approx(whole, rel=1e-12, abs=1e-12), name


def test_tangents_of_the_input_do_not_enter_the_running_statistics(draw, alone):
    layer = BatchNorm(3, dtype=torch.float64, process_group=alone)
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(draw(5, 3).requires_grad_(), draw(5, 3)))
        assert forward_ad.unpack_dual(y).tangent is not None
        assert all(forward_ad.unpack_dual(buffer).tangent is None for buffer in layer.buffers())
    assert not any(buffer.requires_grad for buffer in layer.buffers())
