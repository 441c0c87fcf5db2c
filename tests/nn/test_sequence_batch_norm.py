"""Sequence batch norm is batch norm of the frames that are no padding, pooled over time or step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.testing import assert_close

from normlens.nn.batch_norm import BatchNorm
from normlens.nn.sequence_batch_norm import SequenceBatchNorm

NEAR = 1e3 * torch.finfo(torch.float64).eps
FRAME = {"mode": "frame", "max_length": 5}
BOTH = pytest.mark.parametrize("settings", [{}, FRAME], ids=["sequence", "frame"])
LENGTHS = torch.tensor([5, 2, 4, 5])


def layer(channels=3, **settings):
    return SequenceBatchNorm(channels, dtype=torch.float64, **settings)


def lived_in(draw, channels=3, **settings):
    """A layer whose parameters and running statistics are no longer those of the beginning."""
    made = layer(channels, **settings)
    for parameter in made.parameters():
        parameter.data += draw(*parameter.shape)
    made(draw(7, channels, 5) * 2 + 1)
    return made


def by_time(*rows):
    """One channel of two sequences, given as the frames (rows) of the theory's vectors."""
    return torch.tensor(rows, dtype=torch.float64).T.unsqueeze(1)


def test_of_the_frames_1_3_and_5_7_the_frame_wise_output_is_minus_one_and_one():
    y = layer(1, mode="frame", max_length=2, eps=0.0)(by_time([1, 3], [5, 7]))
    assert_close(y, by_time([-1, 1], [-1, 1]), rtol=0, atol=NEAR)


def test_of_the_frames_1_3_and_5_7_the_sequence_wise_output_is_that_of_four_samples():
    y = layer(1, eps=0.0)(by_time([1, 3], [5, 7]))
    three, one = 1.3416407865, 0.4472135955
    assert_close(y, by_time([-three, -one], [one, three]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", [7.0, float("nan"), float("inf")])
def test_with_lengths_2_and_1_mean_and_variance_are_3_and_8_thirds_whatever_the_padding_holds(padding):
    one = layer(1, eps=0.0, momentum=1.0)
    y = one(by_time([1, 3], [5, padding]), torch.tensor([2, 1]))
    assert_close((one.running_mean.item(), one.running_var.item()), (3.0, 8 / 3 * 3 / 2), rtol=NEAR, atol=0)
    z = 2 / (8 / 3) ** 0.5
    assert_close(y, by_time([-z, 0], [z, 0]), rtol=0, atol=NEAR)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 5, 2, 2)])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_sequence_wise_without_lengths_it_is_batch_norm_over_a_run(draw, shape, momentum):
    ours, theirs = layer(momentum=momentum), BatchNorm(3, momentum=momentum, dtype=torch.float64)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(3)
    for training in (True, True, True, False):
        x = draw(*shape) * 2 + 1
        assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=NEAR, atol=NEAR)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert_close(a, b, rtol=NEAR, atol=NEAR)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("space", [(), (2, 3)])
def test_frame_wise_it_is_one_batch_norm_for_each_frame_over_a_run(draw, momentum, space):
    ours = layer(mode="frame", max_length=5, momentum=momentum)
    theirs = [BatchNorm(3, momentum=momentum, dtype=torch.float64) for _ in range(5)]
    for training, steps in ((True, 5), (True, 3), (True, 5), (False, 5)):
        x = draw(6, 3, steps, *space) * 2 + 1
        frames = [one.train(training)(x[:, :, t]) for t, one in enumerate(theirs[:steps])]
        assert_close(ours.train(training)(x), torch.stack(frames, 2), rtol=NEAR, atol=NEAR)
    for key, buffer in ours.named_buffers():
        assert_close(buffer, torch.stack([getattr(one, key) for one in theirs]), rtol=NEAR, atol=NEAR)


def test_sequence_wise_with_lengths_it_is_batch_norm_of_the_packed_frames(draw):
    x, g, one = draw(4, 3, 5) * 2 + 1, draw(4, 3, 5), layer()
    one.weight.data, one.bias.data = draw(3), draw(3)
    inside = torch.arange(5) < LENGTHS[:, None]
    leaf, packed = x.clone().requires_grad_(), x.transpose(1, 2)[inside].requires_grad_()
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    y = one(leaf, LENGTHS)
    want = F.batch_norm(packed, mean, var, one.weight, one.bias, training=True, momentum=0.1, eps=1e-5)
    assert_close(y.transpose(1, 2)[inside], want, rtol=NEAR, atol=NEAR)
    (ours,) = torch.autograd.grad(y, leaf, g)
    (theirs,) = torch.autograd.grad(want, packed, g.transpose(1, 2)[inside])
    assert_close(ours.transpose(1, 2)[inside], theirs, rtol=NEAR, atol=NEAR)
    assert_close([one.running_mean, one.running_var], [mean, var], rtol=NEAR, atol=NEAR)


def test_frame_wise_with_lengths_each_frame_is_batch_norm_of_the_sequences_that_are_still_there(draw):
    x, one = draw(4, 3, 5) * 2 + 1, layer(**FRAME)
    y = one(x, LENGTHS)
    for t in range(5):
        there = t < LENGTHS
        alone = BatchNorm(3, dtype=torch.float64)
        assert_close(y[there, :, t], alone(x[there, :, t]), rtol=NEAR, atol=NEAR)
        assert_close(one.running_mean[t], alone.running_mean, rtol=NEAR, atol=NEAR)
        assert_close(one.running_var[t], alone.running_var, rtol=NEAR, atol=NEAR)


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_padding_comes_out_as_zero_and_has_no_influence_and_no_gradient(draw, settings, training):
    one, x = lived_in(draw, **settings).train(training), draw(4, 3, 5)
    padding = (torch.arange(5) >= LENGTHS[:, None]).unsqueeze(1).expand(4, 3, 5)
    spoilt = x.clone()
    spoilt[padding] = float("nan")
    twin, leaf = copy.deepcopy(one), spoilt.requires_grad_()
    y = one(leaf, LENGTHS)
    assert torch.equal(y, twin(x, LENGTHS))
    assert not y[padding].any()
    (gradient,) = torch.autograd.grad((y.tanh() * draw(4, 3, 5)).sum(), leaf)
    assert not gradient[padding].any()
    assert gradient[~padding].isfinite().all()
    for a, b in zip(one.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@BOTH
def test_full_lengths_are_no_lengths(draw, settings):
    one, x = lived_in(draw, **settings), draw(4, 3, 5)
    twin = copy.deepcopy(one)
    for training in (True, False):
        full = one.train(training)(x, torch.full((4,), 5))
        assert_close(full, twin.train(training)(x), rtol=NEAR, atol=NEAR)
    for a, b in zip(one.buffers(), twin.buffers(), strict=True):
        assert_close(a, b, rtol=NEAR, atol=NEAR)


def test_frames_in_which_all_sequences_have_ended_move_no_statistic(draw):
    one = lived_in(draw, **FRAME)
    before = {key: buffer.clone() for key, buffer in one.named_buffers()}
    one(draw(4, 3, 5), torch.tensor([2, 3, 3, 2]))
    for key, buffer in one.named_buffers():
        assert torch.equal(buffer[3:], before[key][3:]), key
        assert not torch.equal(buffer[:3], before[key][:3]), key


def test_frames_beyond_max_length_move_no_statistic_and_are_evaluated_with_the_last_ones(draw):
    one, x = layer(mode="frame", max_length=3), draw(6, 3, 5) * 2 + 1
    twin = copy.deepcopy(one)
    one(x)
    twin(x[:, :, :3])
    for a, b in zip(one.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    one.eval()
    last = F.batch_norm(x[:, :, 4], one.running_mean[2], one.running_var[2])
    assert_close(one(x)[:, :, 4], last, rtol=NEAR, atol=NEAR)


def test_a_sequence_in_pieces_is_normalized_as_the_whole(draw):
    whole = lived_in(draw, **FRAME)
    pieces, x = copy.deepcopy(whole), draw(4, 3, 7)
    for training in (True, False):
        whole.train(training)
        pieces.train(training)
        parts = [pieces(x[:, :, :2]), pieces(x[:, :, 2], first_step=2).unsqueeze(2), pieces(x[:, :, 3:], first_step=3)]
        assert_close(torch.cat(parts, 2), whole(x), rtol=NEAR, atol=NEAR)
    for a, b in zip(whole.buffers(), pieces.buffers(), strict=True):
        assert_close(a, b, rtol=NEAR, atol=NEAR)


def test_frame_wise_an_output_does_not_depend_on_later_frames_and_sequence_wise_it_does(draw):
    x = draw(4, 3, 5)
    later = x.clone()
    later[:, :, 3:] += 1 + draw(4, 3, 2)
    frame, pooled = layer(**FRAME), layer()
    assert torch.equal(frame(x)[:, :, :3], frame(later)[:, :, :3])
    assert float((pooled(x) - pooled(later))[:, :, :3].detach().abs().min()) > 1e-3


@BOTH
def test_output_is_invariant_to_a_positive_scale_and_any_shift_of_each_channel_with_lengths(draw, settings):
    one, x = layer(eps=0.0, **settings), draw(4, 3, 5)
    scale, shift = draw(3, 1).exp(), draw(3, 1)
    assert_close(one(x * scale + shift, LENGTHS), one(x, LENGTHS), rtol=1e-12, atol=1e-12)


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_with_lengths_first_and_second_derivatives_agree_with_differences(draw, settings, training):
    one = lived_in(draw, 2, **settings).train(training)
    state = {key: buffer.clone() for key, buffer in one.named_buffers()}
    at = [t.detach().clone().requires_grad_() for t in (draw(4, 2, 5), one.weight, one.bias)]

    def call(x, weight, bias):
        buffers = {key: buffer.clone() for key, buffer in state.items()}
        return torch.func.functional_call(one, {"weight": weight, "bias": bias, **buffers}, (x, LENGTHS))

    assert torch.autograd.gradcheck(call, at)
    assert torch.autograd.gradgradcheck(call, at, draw(4, 2, 5).requires_grad_(), fast_mode=True)


def test_frame_wise_forward_over_reverse_agrees_with_double_backward(draw, double_backward, forward_over_reverse):
    one, readout = layer(**FRAME), draw(4, 3, 5)
    at, v = (draw(4, 3, 5), draw(3), draw(3)), (draw(4, 3, 5), draw(3), draw(3))

    def loss(x, weight, bias):
        buffers = {key: buffer.clone() for key, buffer in one.named_buffers()}
        y = torch.func.functional_call(one, {"weight": weight, "bias": bias, **buffers}, (x, LENGTHS))
        return (y.tanh() * readout).sum()

    for got, want in zip(forward_over_reverse(loss, at, v), double_backward(loss, at, v), strict=True):
        assert_close(got, want, rtol=1e-10, atol=1e-10)


@BOTH
def test_derivatives_of_the_input_do_not_enter_the_running_statistics(draw, settings):
    one, x = lived_in(draw, **settings), draw(4, 3, 5)
    plain = copy.deepcopy(one)
    plain(x, LENGTHS)
    with forward_ad.dual_level():
        one(forward_ad.make_dual(x.clone().requires_grad_(), draw(4, 3, 5)), LENGTHS)
        assert all(forward_ad.unpack_dual(buffer).tangent is None for buffer in one.buffers())
    for a, b in zip(one.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad


@BOTH
def test_in_eval_mode_a_single_sequence_is_enough(draw, settings):
    one = lived_in(draw, **settings).eval()
    x = draw(3, 3, 5)
    assert_close(one(x)[:1], one(x[:1]), rtol=NEAR, atol=NEAR)


def test_frame_wise_statistics_travel_by_the_state_dict_and_are_forgotten_by_a_reset(draw):
    one, fresh = lived_in(draw, **FRAME), layer(**FRAME)
    fresh.load_state_dict(one.state_dict(), strict=True)
    assert [tuple(buffer.shape) for buffer in one.buffers()] == [(5, 3), (5, 3), (5,)]
    x = draw(2, 3, 5)
    assert torch.equal(fresh.eval()(x), one.eval()(x))
    fresh.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), layer(**FRAME).buffers(), strict=True))


@BOTH
def test_it_compiles_to_one_graph_in_eval_mode(draw, settings):
    one, x = lived_in(draw, **settings).eval(), draw(2, 3, 5)
    torch.compiler.reset()
    compiled = torch.compile(one, fullgraph=True, backend="eager")
    assert_close(compiled(x), one(x), rtol=NEAR, atol=NEAR)


def test_a_frame_of_a_single_sequence_is_refused_frame_wise_and_pooled_sequence_wise(draw):
    x, lengths = draw(3, 3, 5), torch.tensor([5, 4, 4])
    match = r"SequenceBatchNorm\(3\) needs more than one value per channel and frame .* got \(3, 3, 5\), 1 per channel "
    with pytest.raises(ValueError, match=match + r"and frame; use a larger batch, mode='sequence'"):
        layer(**FRAME)(x, lengths)
    kept = torch.arange(5) < lengths[:, None]
    mean = layer()(x, lengths).transpose(1, 2)[kept].mean(0)
    assert_close(mean, torch.zeros(3, dtype=torch.float64), rtol=0, atol=NEAR)


def test_a_refused_batch_is_not_counted():
    one = layer(**FRAME)
    with pytest.raises(ValueError, match="more than one value"):
        one(torch.ones(1, 3, 5, dtype=torch.float64))
    assert one.num_batches_tracked.tolist() == [0] * 5


@pytest.mark.parametrize("lengths", [[1, 2], [1, 2, 6], [-1, 2, 3], [1.0, 2.0, 3.0]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    match = r"SequenceBatchNorm\(3\) needs lengths of shape \(3,\), integers from 0 to 5; got \[.*\] for \(3, 3, 5\);"
    with pytest.raises(ValueError, match=match):
        layer()(torch.ones(3, 3, 5, dtype=torch.float64), torch.tensor(lengths))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mode": "time"}, r"mode 'sequence' or 'frame'; got 'time'; choose"),
        ({"max_length": 3}, r"one set of running statistics in mode 'sequence'; got max_length=3; leave it out"),
        ({"mode": "frame"}, r"mode 'frame' needs max_length of at least 1.*; got None; give the longest"),
        ({"mode": "frame", "max_length": 0}, r"max_length of at least 1.*; got 0; "),
    ],
)
def test_modes_and_lengths_that_do_not_fit_each_other_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        layer(**settings)


def test_frame_wise_without_running_statistics_eval_mode_uses_those_of_the_batch(draw):
    one, x = layer(mode="frame", track_running_stats=False), draw(4, 3, 5)
    assert torch.equal(one.train()(x), one.eval()(x))
    assert list(one.buffers()) == []
