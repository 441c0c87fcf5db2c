"""The chain predicts a layer's moments from those of the layer before, through the modules between."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn.batch_kalman_norm import BatchKalmanNorm
from normlens.nn.functional import Moments
from normlens.nn.kalman_chain import KalmanSequential


class Asked(BatchKalmanNorm):
    """A layer that keeps the prior it was given."""

    given: Moments | None = None

    def step(self, x, prior=None):
        self.given = prior
        return super().step(x, prior)


def layer_of(channels, **settings):
    return Asked(channels, dtype=torch.float64, **settings)


def live(layer, draw):
    """The layer with weight and bias of its own."""
    layer.weight.data, layer.bias.data = draw(layer.num_features), draw(layer.num_features)
    return layer


def test_through_the_identity_the_state_arrives_exactly(draw):
    for prior in ("consistent", "repo"):
        first, second = live(layer_of(3, prior=prior), draw), layer_of(3)
        x = draw(6, 3, 2) * 5 + 2
        state = copy.deepcopy(first).step(x)[1]
        KalmanSequential(first, nn.Identity(), second)(x)
        assert first.given is None
        assert_close(second.given, state, rtol=1e-12, atol=1e-12)


def test_through_an_affine_map_of_each_channel_the_moments_are_exact(draw):
    first, conv, second = live(layer_of(3), draw), nn.Conv1d(3, 3, 1, groups=3, dtype=torch.float64), layer_of(3)
    KalmanSequential(first, conv, second)(draw(4, 3, 5))
    w, b = conv.weight.flatten(), conv.bias
    want = Moments(w * first.bias + b, w.square() * first.weight.square())
    assert_close(second.given, want, rtol=1e-12, atol=1e-12)


def test_through_relu_and_a_convolution_the_moments_are_the_closed_form_within_their_sampling_error(draw):
    """Independent half-normals: mean 1 / sqrt(2 pi), variance (1 - 1 / pi) / 2, fourth central moment below 1."""
    channels, side, draws = 8, 20, 64
    conv = nn.Conv2d(channels, 4, 3, bias=True, dtype=torch.float64)
    for p in conv.parameters():
        p.data = draw(*p.shape)
    first, second = layer_of(channels), layer_of(4)
    KalmanSequential(first, nn.ReLU(), conv, second, draws=draws)(draw(2, channels, side, side))
    mean, var = conv.weight.sum((1, 2, 3)) / math.sqrt(2 * math.pi), (1 - 1 / math.pi) / 2
    want = Moments(mean + conv.bias, conv.weight.square().sum((1, 2, 3)) * var)
    # each input enters up to nine outputs, hence the effective count is that of the inputs over nine
    error = 5 * math.sqrt(2 * 9 / (draws * side * side))
    assert bool(((second.given.mean - want.mean).abs() < error * want.var.sqrt()).all())
    assert bool(((second.given.var / want.var - 1).abs() < error).all())


def test_without_weight_on_the_prior_the_chain_is_a_chain_of_batch_norms(draw):
    def network(norm):
        return [norm(6), nn.ReLU(), nn.Linear(6, 4, dtype=torch.float64), norm(4), nn.Tanh(), norm(4)]

    ours = KalmanSequential(*network(lambda c: layer_of(c, prior_weight=0.0)))
    theirs = nn.Sequential(*network(lambda c: nn.BatchNorm1d(c, dtype=torch.float64)))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for training in (True, True, False):
        x = draw(5, 6)
        assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-11, atol=1e-11)


def test_the_output_is_that_of_the_steps_taken_by_hand(draw):
    first, linear, second = live(layer_of(3), draw), nn.Linear(3, 2, dtype=torch.float64), layer_of(2, prior_weight=0.6)
    chain, x = KalmanSequential(first, linear, second), draw(5, 3)
    by_hand = copy.deepcopy(chain)
    y = chain(x)
    h, _ = by_hand[0].step(x)
    assert_close(by_hand[2].step(by_hand[1](h), second.given)[0], y, rtol=1e-13, atol=1e-13)


def test_only_the_consistent_prior_does_not_move_with_the_scale_of_the_input(draw):
    ratios = {}
    for prior in ("consistent", "repo"):
        first, second = layer_of(8, prior=prior), layer_of(4)
        linear = nn.Linear(8, 4, dtype=torch.float64)
        linear.weight.data = draw(4, 8)
        with torch.no_grad():
            KalmanSequential(first, linear, second, draws=256)(100 * draw(512, 8))
        seen = linear.weight.data.square().sum(1)  # variance of what the second layer sees
        ratios[prior] = float((second.given.var / seen).mean())
    assert 0.5 < ratios["consistent"] < 2
    assert ratios["repo"] > 1000  # the scale squared, 10000, less what the first layer's own prior takes


def test_gradients_flow_through_the_prediction(draw):
    chain = KalmanSequential(
        live(layer_of(2), draw), nn.Tanh(), nn.Linear(2, 2, dtype=torch.float64), layer_of(2, prior_weight=0.7), draws=4
    )
    names = [name for name, _ in chain.named_parameters()]
    at = [draw(4, 2).requires_grad_(), *(p.detach().clone().requires_grad_() for p in chain.parameters())]

    def call(x, *parameters):
        twin = copy.deepcopy(chain)
        state = {**dict(twin.named_buffers()), **dict(zip(names, parameters, strict=True))}
        return torch.func.functional_call(twin, state, (x,))

    assert torch.autograd.gradcheck(call, at)
    assert torch.autograd.gradgradcheck(call, at, draw(4, 2).requires_grad_(), fast_mode=True)
    chain(at[0])
    (through,) = torch.autograd.grad(chain[3].given.var.sum(), chain[2].weight)
    assert float(through.abs().min()) > 0


def test_eval_mode_draws_nothing_and_is_a_plain_sequence(draw):
    chain = KalmanSequential(layer_of(3), nn.Linear(3, 2, dtype=torch.float64), layer_of(2))
    chain(draw(6, 3))
    plain, x = nn.Sequential(*chain), draw(1, 3)
    assert torch.equal(chain.eval()(x), plain(x))
    assert chain[2].given is None


def test_calls_are_repeatable_and_leave_the_global_random_state_alone(draw):
    chain, x = KalmanSequential(layer_of(3), nn.Linear(3, 2, dtype=torch.float64), layer_of(2)), draw(6, 3)
    before = torch.random.get_rng_state()
    first, again = copy.deepcopy(chain)(x), copy.deepcopy(chain)(x)
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = KalmanSequential(*chain, seed=1)
    assert not torch.equal(other(x), first)


def test_after_a_frozen_layer_the_chain_begins_anew(draw):
    chain = KalmanSequential(layer_of(3), nn.Identity(), layer_of(3))
    chain[0].eval()
    chain(draw(5, 3))
    assert chain[2].given is None


def test_half_precision_keeps_its_dtype_and_predicts_in_float32(draw):
    chain = KalmanSequential(Asked(3), nn.Linear(3, 2), Asked(2)).half()
    y = chain((draw(8, 3) * 500 + 1000).half())
    assert y.dtype == torch.float16
    assert bool(y.isfinite().all())
    assert chain[2].given.var.dtype == torch.float32


def test_modules_with_buffers_between_layers_are_refused_and_elsewhere_allowed():
    with pytest.raises(ValueError, match=r"without buffers between its layers.*got BatchNorm1d at 1; move it before"):
        KalmanSequential(BatchKalmanNorm(3), nn.BatchNorm1d(3), BatchKalmanNorm(3))
    KalmanSequential(nn.BatchNorm1d(3), BatchKalmanNorm(3), nn.Linear(3, 3), BatchKalmanNorm(3), nn.BatchNorm1d(3))
    KalmanSequential(nn.BatchNorm1d(3))


@pytest.mark.parametrize("draws", [1, 0])
def test_draws_that_have_no_variance_are_refused(draws):
    with pytest.raises(ValueError, match=rf"draws of at least 2 to take a variance; got {draws}; try 16"):
        KalmanSequential(BatchKalmanNorm(3), draws=draws)


def test_the_settings_are_shown():
    assert repr(KalmanSequential(nn.ReLU(), seed=3)).splitlines()[1].strip() == "draws=16, seed=3"
