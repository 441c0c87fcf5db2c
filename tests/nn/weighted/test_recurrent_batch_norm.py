"""Recurrent batch norm is batch norm of every step by itself, and keeps gradients alive over time."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.sequence_batch_norm import SequenceBatchNorm
from normlens.nn.weighted.recurrent_batch_norm import BatchNormLSTM, draw_orthogonal_, lstm_step

NEAR = 1e3 * torch.finfo(torch.float64).eps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def memory(inputs=3, units=4, steps=5, **settings):
    return BatchNormLSTM(inputs, units, steps, generator=generator(), dtype=torch.float64, **settings)


def lived_in(draw, **settings):
    """A layer whose parameters and running statistics are no longer those of the beginning."""
    made = memory(**settings)
    for parameter in made.parameters():
        parameter.data += 0.5 * draw(*parameter.shape)
    for _ in range(3):
        made(draw(5, 8, 3) + 1)
    return made


def batch_norm_by_hand(x, gain, shift=0.0, eps=1e-5):
    return gain * (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() + shift


def test_the_step_of_the_memory_is_that_of_torch(draw):
    theirs = nn.LSTMCell(3, 4, dtype=torch.float64)
    x, h, c = draw(6, 3), draw(6, 4), draw(6, 4)
    gates = x @ theirs.weight_ih.T + h @ theirs.weight_hh.T + theirs.bias_ih + theirs.bias_hh
    cell, gate = lstm_step(gates, c)
    assert_close((gate * torch.tanh(cell), cell), theirs(x, (h, c)), rtol=NEAR, atol=NEAR)


def test_with_unit_running_statistics_gain_and_eps_0_it_is_torchs_lstm_in_output_and_gradient(draw):
    ours, theirs = memory(gamma=1.0, eps=0.0).eval(), nn.LSTM(3, 4, dtype=torch.float64)
    own = {"weight_ih_l0": ours.weight_ih, "weight_hh_l0": ours.weight_hh, "bias_ih_l0": ours.bias}
    theirs.load_state_dict({**{k: v.detach() for k, v in own.items()}, "bias_hh_l0": torch.zeros(16)})
    x, g, state = draw(7, 6, 3), draw(7, 6, 4), (draw(6, 4), draw(6, 4))
    results = []
    for layer, named in ((ours, ours), (theirs, theirs)):
        y, (h, c) = layer(x, state if layer is ours else tuple(s.unsqueeze(0) for s in state))
        names = own if layer is theirs else ["weight_ih", "weight_hh", "bias"]
        gradients = torch.autograd.grad(y, [getattr(named, name) for name in names], g)
        results.append([y, h.reshape(6, 4), c.reshape(6, 4), *gradients])
    assert_close(*results, rtol=NEAR, atol=NEAR)


def test_in_train_mode_it_is_the_papers_equations_with_the_statistics_of_each_step(draw):
    one, x = memory(), draw(5, 6, 3) * 2 + 1
    for parameter in one.parameters():
        parameter.data += 0.5 * draw(*parameter.shape)
    h = c = torch.zeros(6, 4, dtype=torch.float64)
    want = []
    for t in range(5):
        gates = batch_norm_by_hand(h @ one.weight_hh.T, one.norm_hh.weight)
        gates = gates + batch_norm_by_hand(x[t] @ one.weight_ih.T, one.norm_ih.weight) + one.bias
        i, f, g, o = gates.split(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * batch_norm_by_hand(c, one.norm_cell.weight, one.norm_cell.bias).tanh()
        want.append(h)
    y, state = one(x)
    assert_close(y, torch.stack(want), rtol=NEAR, atol=NEAR)
    assert_close(state, (h, c), rtol=NEAR, atol=NEAR)


def test_running_statistics_are_those_of_each_step_and_no_others(draw):
    one, x = memory(momentum=1.0), draw(5, 6, 3) * torch.arange(1, 6)[:, None, None] + 1
    one(x)
    projected = x @ one.weight_ih.detach().T
    assert_close(one.norm_ih.running_mean, projected.mean(1), rtol=NEAR, atol=NEAR)
    assert_close(one.norm_ih.running_var, projected.var(1), rtol=NEAR, atol=NEAR)
    moved = copy.deepcopy(one.state_dict())
    x[3] += 1  # step 3 changes what comes behind it alone
    one(x)
    for key, buffer in one.named_buffers():
        assert torch.equal(buffer[:3], moved[key][:3]) or key.endswith("num_batches_tracked"), key


def test_the_momentum_is_a_hundredth_and_statistics_start_at_0_and_1(draw):
    one, x = memory(), draw(5, 6, 3) + 1
    assert not one.norm_cell.running_mean.any()
    assert one.norm_cell.running_var.eq(1).all()
    one(x)
    projected = x @ one.weight_ih.detach().T
    assert_close(one.norm_ih.running_mean, 0.01 * projected.mean(1), rtol=NEAR, atol=NEAR)
    assert_close(one.norm_ih.running_var, 0.99 + 0.01 * projected.var(1), rtol=NEAR, atol=NEAR)


def test_after_many_passes_over_one_batch_eval_is_train_up_to_the_unbiased_variance(draw):
    n, one, x = 400, memory(momentum=1.0), draw(5, 400, 3)
    trained = [one(x)[0] for _ in range(2)][-1]
    # gains are 0.1: the output moves by no more than the relative change of a standard deviation, 1 / 2n
    assert_close(one.eval()(x)[0], trained, rtol=0, atol=1 / n)


def test_beyond_max_length_the_statistics_of_the_last_step_are_used(draw):
    one, x = lived_in(draw).eval(), draw(8, 6, 3)
    longer = BatchNormLSTM(3, 4, 8, generator=generator(), dtype=torch.float64)
    state = copy.deepcopy(one.state_dict())
    for key, buffer in one.named_buffers():
        state[key] = torch.cat([buffer, *[buffer[-1:]] * 3])
    longer.load_state_dict(state)
    assert_close(one(x), longer.eval()(x), rtol=NEAR, atol=NEAR)


def test_in_train_mode_steps_beyond_max_length_move_no_statistic(draw):
    one = lived_in(draw)
    twin, x = copy.deepcopy(one), draw(8, 6, 3)
    one(x)
    twin(x[:5])
    for (key, a), b in zip(one.named_buffers(), twin.buffers(), strict=True):
        assert_close(a, b, rtol=NEAR, atol=NEAR, msg=key)


def test_in_train_mode_the_output_does_not_depend_on_the_length_of_any_weight_row(draw):
    one, x = memory(eps=0.0), draw(5, 6, 3)
    # h is 0 before the first step, where 0 / 0 would come of eps = 0: start from noise
    state = (draw(6, 4), torch.zeros(6, 4, dtype=torch.float64))
    scaled = copy.deepcopy(one)
    scaled.weight_ih.data *= draw(16, 1).exp()
    scaled.weight_hh.data *= draw(16, 1).exp()
    assert_close(scaled(x, state), one(x, state), rtol=1e-11, atol=1e-11)


def test_weights_start_orthogonal_gate_by_gate_the_forget_gate_open_and_the_gains_at_a_tenth():
    one = memory(3, 4)
    eye = torch.eye(4, dtype=torch.float64)
    for gate in one.weight_hh.detach().chunk(4):
        assert_close(gate @ gate.T, eye, rtol=0, atol=NEAR)
    for gate in one.weight_ih.detach().chunk(4):
        assert_close(gate.T @ gate, torch.eye(3, dtype=torch.float64), rtol=0, atol=NEAR)
    assert one.bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8
    gains = [norm.weight.tolist() for norm in (one.norm_ih, one.norm_hh, one.norm_cell)]
    assert gains == [[0.1] * 16, [0.1] * 16, [0.1] * 4]
    assert (one.norm_ih.bias, one.norm_hh.bias) == (None, None)
    assert one.norm_cell.bias.tolist() == [0.0] * 4


def test_the_generator_alone_decides_the_orthogonal_blocks():
    blocks = [torch.empty(8, 3) for _ in range(3)]
    for block, seed in zip(blocks, (1, 1, 2), strict=True):
        draw_orthogonal_(block, generator=generator(seed))
    assert torch.equal(blocks[0], blocks[1])
    assert not torch.equal(blocks[0], blocks[2])


def test_noise_before_the_first_step_is_drawn_as_by_dropout_in_train_mode_alone(draw):
    one, x, wide = memory(units=400, h0_noise=0.1), draw(5, 6, 3), memory(units=400)
    wide.load_state_dict(one.state_dict())
    torch.manual_seed(5)
    noise = 0.1 * torch.randn(6, 400, dtype=torch.float64)
    torch.manual_seed(5)
    y = one(x)[0]
    assert torch.equal(y, wide(x, (noise, torch.zeros_like(noise)))[0])
    assert not torch.equal(one(x)[0], y)
    state = torch.random.get_rng_state()
    assert torch.equal(one.eval()(x)[0], one(x)[0])
    memory()(x)
    assert torch.equal(torch.random.get_rng_state(), state)


SLOPES = [(0.01, 0.99990002), (0.1, 0.99019453), (0.3, 0.92305031), (0.5, 0.82648386), (1.0, 0.60570551)]


@pytest.mark.parametrize(("gamma", "slope"), SLOPES)
def test_the_mean_derivative_of_tanh_behind_a_norm_with_gain_gamma_is_the_gaussian_expectation(gamma, slope):
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    expectation = float((weights * (1 - np.tanh(gamma * nodes) ** 2)).sum() / math.sqrt(2 * math.pi))
    assert_close(expectation, slope, rtol=0, atol=1e-8)
    norm = SequenceBatchNorm(1, eps=0.0, dtype=torch.float64)
    norm.weight.data.fill_(gamma)
    n = 20000
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    quantiles = 5 + 3 * math.sqrt(2) * torch.special.erfinv(2 * middles - 1)
    found = float((1 - norm(quantiles[:, None]).detach().tanh() ** 2).mean())
    # the grid of n quantiles lacks of order log(n) / n of the variance
    assert_close(found, slope, rtol=0, atol=math.log(n) / n)


def test_the_mean_squared_derivative_of_tanh_is_0_98067_at_a_tenth_and_0_46440_at_one():
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    for gamma, squared in ((0.1, 0.98067), (1.0, 0.46440)):
        found = (weights * (1 - np.tanh(gamma * nodes) ** 2) ** 2).sum() / math.sqrt(2 * math.pi)
        assert_close(found, squared, rtol=0, atol=5e-6)


def growth_by_theory(gamma):
    """Growth of a gradient per step: ``gamma rms(tanh'(gamma Z)) / std(tanh(gamma Z))``, Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights, values = weights / weights.sum(), np.tanh(gamma * nodes)
    return gamma * math.sqrt((weights * (1 - values**2) ** 2).sum() / (weights * values**2).sum())


def gradient_norms(gamma, draw, steps=20, n=500, units=64):
    """Norms of dL/dh_t in ``h_t = tanh(BN_t(W h))`` with orthogonal W and gain gamma, for a loss on the last state."""
    norm = SequenceBatchNorm(units, mode="frame", max_length=steps, eps=0.0, dtype=torch.float64)
    norm.weight.data.fill_(gamma)
    weight = torch.linalg.qr(draw(units, units))[0]
    states = [torch.tanh(gamma * draw(n, units)).requires_grad_()]
    for t in range(steps):
        states.append(torch.tanh(norm(states[-1] @ weight.T, first_step=t)))
    gradients = torch.autograd.grad((states[-1] * draw(n, units)).sum(), states)
    return torch.stack([g.norm() for g in gradients])


@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.5, 1.0, 2.0])
def test_a_gradient_grows_per_step_by_gamma_rms_of_tanh_prime_over_std_of_tanh(draw, gamma):
    norms = gradient_norms(gamma, draw)
    growth = float((norms[0] / norms[-1]) ** (1 / (len(norms) - 1)))
    # states of 64 units are Gaussian sums to within a few per mille of this ratio
    assert_close(growth, growth_by_theory(gamma), rtol=5e-3, atol=0)


def test_gradients_stay_as_they_are_at_a_gain_of_a_tenth_and_explode_at_two(draw):
    norms = {gamma: gradient_norms(gamma, draw) for gamma in (0.1, 2.0)}
    assert 0.95 < float(norms[0.1][0] / norms[0.1][-1]) < 1.05
    assert float(norms[2.0][0] / norms[2.0][-1]) > 50


@pytest.mark.parametrize(("sizes", "name"), [((0, 4, 5), "input_size"), ((3, 0, 5), "hidden_size")])
def test_sizes_below_one_are_refused(sizes, name):
    with pytest.raises(ValueError, match=rf"BatchNormLSTM needs {name} of at least 1; got 0"):
        BatchNormLSTM(*sizes, generator=generator())


def test_a_memory_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"BatchNormLSTM needs max_length of at least 1; got 0"):
        memory(steps=0)


@pytest.mark.parametrize("noise", [-0.1, float("nan")])
def test_negative_noise_is_refused(noise):
    with pytest.raises(ValueError, match=rf"h0_noise of at least 0; got {noise}; it is a standard deviation"):
        memory(h0_noise=noise)


def test_one_sequence_is_refused_in_train_mode_and_evaluated_by_the_running_statistics(draw):
    one, x = lived_in(draw), draw(5, 4, 3)
    with pytest.raises(ValueError, match=r"more than one sequence in train mode.* got \(5, 1, 3\); use a larger batch"):
        one(x[:, :1])
    one.eval()
    assert_close(one(x[:, :1])[0], one(x)[0][:, :1], rtol=NEAR, atol=NEAR)


def test_a_sequence_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"at least one time step; got \(0, 4, 3\)"):
        memory()(torch.ones(0, 4, 3, dtype=torch.float64))
