"""Mixture norm is batch norm with one component, has its closed forms, and keeps its running components apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.nn import em_mixture as em
from normlens.nn.mixture_norm import MixtureNorm

both_kinds = pytest.mark.parametrize("gmm", ["vector", "channel"])


def layer_of(channels, **settings):
    return MixtureNorm(channels, dtype=torch.float64, **settings)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def around(draw, centers, each, spread=1.0):
    """Samples (K * each, C) around the rows of ``centers``, in a mixed order."""
    places = torch.tensor(centers, dtype=torch.float64).repeat_interleave(each, 0)
    return (places + spread * draw(*places.shape))[draw(len(places)).argsort()]


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (3, 4, 5, 2)])
@pytest.mark.parametrize("settings", [{}, {"momentum": None, "eps": 1e-3}, {"affine": False}])
@pytest.mark.parametrize("grad_through", ["stats", "all"])
@both_kinds
def test_one_component_is_batch_norm_over_a_run(draw, gmm, grad_through, settings, shape):
    ours = layer_of(4, components=1, gmm=gmm, grad_through=grad_through, **settings)
    theirs = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(4, dtype=torch.float64, **settings)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = q.data = draw(4)
    for training in (True, True, True, False):
        x, g, results = draw(*shape) * 3 + 2, draw(*shape), []
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], g)
            results.append([y, *gradients, layer.running_mean.flatten(), layer.running_var.flatten()])
        assert_close(*results, rtol=1e-12, atol=1e-12)


@both_kinds
def test_two_far_modes_are_laid_over_each_other(gmm):
    layer = layer_of(1, components=2, gmm=gmm, eps=0.0)
    root = 2**0.5
    assert_close(layer(column(-11, -9, 9, 11)), column(-root, root, -root, root), rtol=1e-12, atol=1e-12)


def test_a_lone_value_becomes_zero_and_the_others_a_component_of_three_quarters():
    y = layer_of(1, components=2, iterations=30)(column(0, 1, 2, 10))
    step = (1 / (2 / 3 + 1e-5) / 0.75) ** 0.5
    assert_close(y, column(-step, 0, step, 0), rtol=1e-9, atol=1e-9)
    assert_close(step, 2**0.5, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rescale", [False, True])
def test_modes_apart_make_the_variance_the_number_of_components_or_one(draw, rescale):
    x = around(draw, [[-300.0, 0.0], [0.0, 300.0], [300.0, 600.0]], 20)
    y = layer_of(2, components=3, eps=0.0, rescale=rescale)(x)
    assert_close(y.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    want = torch.full((2,), 1.0 if rescale else 3.0, dtype=torch.float64)
    assert_close(y.var(0, correction=0), want, rtol=1e-12, atol=0)


@both_kinds
@pytest.mark.parametrize("grad_through", ["stats", "none", "all"])
def test_second_derivatives_agree_in_both_orders_whatever_the_gradient(
    draw, double_backward, forward_over_reverse, gmm, grad_through
):
    layer, x, v, readout = layer_of(2, gmm=gmm, grad_through=grad_through), draw(9, 2).exp(), draw(9, 2), draw(9, 2)

    def loss(x):
        twin = copy.deepcopy(layer)
        state = {**dict(layer.named_parameters()), **{name: buffer.clone() for name, buffer in layer.named_buffers()}}
        return (torch.func.functional_call(twin, state, (x,)).tanh() * readout).sum()

    got, want = forward_over_reverse(loss, (x,), (v,)), double_backward(loss, (x,), (v,))
    assert_close(got, want, rtol=1e-9, atol=1e-9)


@both_kinds
def test_a_positive_scale_and_a_shift_of_each_channel_cancel(draw, gmm):
    layer, x = layer_of(3, gmm=gmm, eps=0.0), draw(10, 3, 4).exp()
    scale, shift = draw(3, 1).exp(), 10 * draw(3, 1)
    assert_close(layer(x * scale + shift), layer(x), rtol=1e-9, atol=1e-9)


def test_the_samples_may_come_in_any_order(draw):
    layer, x, order = layer_of(3), draw(12, 3, 4).exp(), draw(12).argsort()
    assert_close(layer(x[order]), layer(x)[order], rtol=1e-10, atol=1e-10)


def test_a_mixture_per_channel_is_a_layer_per_channel(draw):
    x = draw(20, 3).exp()
    y = layer_of(3, gmm="channel")(x)
    alone = [layer_of(1)(x[:, c : c + 1]) for c in range(3)]
    assert_close(y, torch.cat(alone, dim=1), rtol=1e-11, atol=1e-11)


def responsibilities(layer, x):
    """What the layer takes as constants, for (N, C) and one posterior."""
    unit = (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt()
    points = unit.detach().mT.unsqueeze(0)
    return em.fit_responsibilities(points, layer.components, iterations=layer.iterations, min_weight=1e-3)[0]


def spelled_out(x, r, eps, *, stats):
    """The formula of the paper, sum by sum; ``stats`` is x or a constant copy of it."""
    y = torch.zeros_like(x)
    for share in r:
        nu = (share / share.sum()).unsqueeze(1)
        mean = (nu * stats).sum(0)
        var = (nu * (stats - mean) ** 2).sum(0)
        y = y + (share / share.mean().sqrt()).unsqueeze(1) * (x - mean) / (var + eps).sqrt()
    return y


@pytest.mark.parametrize("grad_through", ["stats", "none", "all"])
def test_the_output_is_the_formula_whatever_the_gradient(draw, grad_through):
    layer, x = layer_of(3, grad_through=grad_through), draw(20, 3).exp()
    want = spelled_out(x, responsibilities(layer, x), layer.eps, stats=x)
    assert_close(layer(x), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("grad_through", ["stats", "none"])
def test_the_gradient_is_that_of_the_formula_with_its_constants_held(draw, grad_through):
    layer, x, g = layer_of(3, grad_through=grad_through), draw(20, 3).exp().requires_grad_(), draw(20, 3)
    (got,) = torch.autograd.grad(layer(x), x, g)
    stats = x if grad_through == "stats" else x.detach()
    held = spelled_out(x, responsibilities(layer, x), layer.eps, stats=stats)
    assert_close(got, *torch.autograd.grad(held, x, g), rtol=1e-10, atol=1e-10)


@both_kinds
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_through_all_is_the_derivative(draw, gmm, training):
    layer = layer_of(2, components=2, gmm=gmm, grad_through="all")
    for _ in range(3):
        layer(around(draw, [[-2.0, 0.0], [2.0, 1.0]], 8))
    layer.train(training)
    x = around(draw, [[-2.0, 0.0], [2.0, 1.0]], 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: copy.deepcopy(layer)(x), x)
    cotangent = draw(*x.shape).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: copy.deepcopy(layer)(x), x, cotangent, fast_mode=True)


def test_what_the_gradient_leaves_out_is_not_small(draw):
    x, g = around(draw, [[-2.0, 0.0], [2.0, 1.0]], 20).requires_grad_(), draw(40, 2)
    ways = ("stats", "none", "all")
    stats, none, full = (torch.autograd.grad(layer_of(2, grad_through=w)(x), x, g)[0] for w in ways)
    assert float((stats - full).norm() / full.norm()) > 0.1
    assert float((none - full).norm() / full.norm()) > 0.1


CORNERS = [[0.0, 0.0], [12.0, 0.0], [6.0, 12.0]]


def shares(draw, counts):
    """Samples of the three corners, so many of each."""
    parts = [around(draw, [corner], count) for corner, count in zip(CORNERS, counts, strict=True)]
    return torch.cat(parts)[draw(sum(counts)).argsort()]


def test_running_components_stay_apart_although_batches_number_them_otherwise(draw):
    layer, first = layer_of(2, components=3, momentum=0.3, iterations=20), set()
    for step in range(40):
        x = shares(draw, (60, 10, 30) if step % 2 else (10, 60, 30))
        points = ((x - x.mean(0)) / x.std(0, correction=0)).mT.unsqueeze(0)
        r = em.fit_responsibilities(points, 3, iterations=20, min_weight=1e-3)[0]
        nearest = torch.cdist((r @ x) / r.sum(1, keepdim=True), torch.tensor(CORNERS, dtype=torch.float64)).argmin(1)
        first.add(tuple(nearest.tolist()))
        layer(x)
    assert len(first) > 1, "the batches all number their components alike: the test shows nothing"
    distance = torch.cdist(layer.running_mean, torch.tensor(CORNERS, dtype=torch.float64))
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]
    assert float(distance.amin(1).max()) < 0.5
    assert_close(layer.running_var, torch.ones_like(layer.running_var), rtol=0, atol=0.4)


@both_kinds
def test_eval_mode_does_what_train_mode_did_once_the_running_mixture_is_that_of_the_batch(draw, gmm):
    layer = layer_of(2, gmm=gmm, momentum=1.0, iterations=200)
    x = around(draw, [[-6.0, 9.0], [0.0, 0.0], [6.0, -9.0]], 1000)
    y = layer(x)
    assert_close(layer.eval()(x), y, rtol=0, atol=2e-3)  # of the correction n / (n - 1) with n = 3000


def test_eval_mode_is_the_formula_under_the_running_mixture(draw):
    layer = layer_of(3, components=2)
    for _ in range(4):
        layer(around(draw, [[-2.0, 0.0, 1.0], [2.0, 1.0, 3.0]], 10))
    x, eps = draw(6, 3), layer.eps
    mixture = em.Mixture(*(part.unsqueeze(0) for part in (layer.running_weight, layer.running_mean, layer.running_var)))
    r = em.posterior(x.mT.unsqueeze(0), mixture)[0]
    want = torch.zeros_like(x)
    for k in range(2):
        z = (x - layer.running_mean[k]) / (layer.running_var[k] + eps).sqrt()
        want = want + (r[k] / layer.running_weight[k].sqrt()).unsqueeze(1) * z
    assert_close(layer.eval()(x), want, rtol=1e-10, atol=1e-10)


def test_before_the_first_batch_eval_mode_multiplies_by_the_root_of_the_number_of_components(draw):
    x = draw(5, 2)
    assert_close(layer_of(2, eps=0.0).eval()(x), 3**0.5 * x, rtol=1e-14, atol=1e-14)
    assert_close(layer_of(2, eps=0.0, rescale=True).eval()(x), x, rtol=1e-14, atol=1e-14)


def test_a_component_the_batch_does_not_have_keeps_its_mean_and_variance(draw):
    layer = layer_of(1, components=2, momentum=0.5, iterations=50, min_weight=0.05)
    for _ in range(20):
        layer(around(draw, [[-10.0], [10.0]], 20))
    kept = copy.deepcopy(layer.state_dict())
    outlier = around(draw, [[-10.0]], 100)
    outlier[0] = 1000.0  # EM spends a component on it, which is dropped
    layer(outlier)
    far = int(kept["running_mean"].argmax())
    for name in ("running_mean", "running_var"):
        assert torch.equal(layer.state_dict()[name][far], kept[name][far])
        assert not torch.equal(layer.state_dict()[name][1 - far], kept[name][1 - far])
    assert_close(layer.running_weight.flatten()[far], 0.5 * kept["running_weight"].flatten()[far], rtol=1e-12, atol=0)


def test_a_constant_channel_becomes_the_bias_and_leaves_the_others_alone(draw):
    x = around(draw, [[-4.0, 1.0], [4.0, -1.0]], 10)
    wide = torch.cat([x, torch.full((20, 1), 7.0, dtype=torch.float64)], dim=1)
    layer = layer_of(3)
    layer.bias.data += 0.5
    y = layer(wide)
    assert_close(y[:, 2], torch.full((20,), 0.5, dtype=torch.float64), rtol=0, atol=1e-9)
    assert_close(y[:, :2] - 0.5, layer_of(2)(x), rtol=1e-6, atol=1e-6)


def test_without_eps_a_constant_channel_is_nan_and_the_others_are_not(draw):
    x = around(draw, [[-4.0, 1.0], [4.0, -1.0]], 10)
    wide = torch.cat([x, torch.full((20, 1), 7.0, dtype=torch.float64)], dim=1)
    y = layer_of(3, eps=0.0)(wide)
    assert bool(y[:, 2].isnan().all())
    assert_close(y[:, :2], layer_of(2, eps=0.0)(x), rtol=1e-6, atol=1e-6)


def test_running_statistics_have_a_row_per_component(draw):
    vector, channel = layer_of(4, components=2), layer_of(4, components=2, gmm="channel")
    assert {key: tuple(t.shape) for key, t in vector.named_buffers()} == {
        "running_mean": (2, 4),
        "running_var": (2, 4),
        "num_batches_tracked": (),
        "running_weight": (2, 1),
    }
    assert tuple(channel.running_weight.shape) == (2, 4)
    for layer in (vector, channel):
        layer(draw(9, 4))
        assert_close(layer.running_weight.sum(0), torch.ones_like(layer.running_weight[0]), rtol=1e-14, atol=0)
        layer.reset_parameters()
        assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), copy.deepcopy(layer).buffers(), strict=True))
        assert layer.running_weight.flatten().tolist() == [0.5] * layer.running_weight.numel()
        assert layer.running_mean.flatten().tolist() == [0.0] * 8
        assert layer.running_var.flatten().tolist() == [1.0] * 8


@pytest.mark.parametrize("components", [0, 7, -1])
def test_too_few_or_too_many_components_are_refused(components):
    with pytest.raises(ValueError, match=rf"components from 1 to 6; got {components}; 1 is batch norm"):
        MixtureNorm(4, components=components)


@pytest.mark.parametrize("settings", [{"gmm": "scalar"}, {"grad_through": "some"}])
def test_a_choice_that_does_not_exist_is_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"{name} to be one of \(.*\); got '{value}'"):
        MixtureNorm(4, **settings)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"min_weight": 0.5}, {"min_weight": -0.1}])
def test_no_iterations_and_a_least_weight_that_may_drop_all_are_refused(settings):
    with pytest.raises(ValueError, match="iterations of at least 1 and min_weight from 0 to below 1 / components; got"):
        MixtureNorm(4, components=2, **settings)


def test_fewer_values_than_components_are_refused_and_not_counted():
    layer = MixtureNorm(4)
    with pytest.raises(ValueError, match=r"MixtureNorm\(4\) needs more than one value per channel.*got \(1, 4\)"):
        layer(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"MixtureNorm\(4\) needs as many values.*got \(2, 4\), 2 per channel.*larger"):
        layer(torch.ones(2, 4))
    assert int(layer.num_batches_tracked) == 0
    assert layer.eval()(torch.ones(1, 4)).shape == (1, 4)
