"""Calibrated statistics are those of all data in one pass, under the noise, and nothing else has moved."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.inference import WeightNoise, calibrate_batchnorm
from normlens.inference.calibration import calibrate_risk, pooled_moments
from normlens.nn import (
    BatchChannelNorm,
    BatchKalmanNorm,
    BatchNorm,
    BatchRenorm,
    CrossIterationBatchNorm,
    EvoNorm,
    GhostBatchNorm,
    IndependentComponent,
    InstanceEnhancementBatchNorm,
    InstanceNorm,
    MeanOnlyBatchNorm,
    SwitchableNorm,
)
from normlens.risk import EmpiricalRisk

EPS = torch.finfo(torch.float64).eps
CLOSE = {"rtol": 1e3 * EPS, "atol": 1e3 * EPS}  # sums over some hundred values of order one

TREATED = [
    BatchNorm, GhostBatchNorm, IndependentComponent, InstanceEnhancementBatchNorm, BatchChannelNorm, BatchKalmanNorm,
    CrossIterationBatchNorm, SwitchableNorm, partial(EvoNorm, batch_based=True), nn.BatchNorm2d, nn.SyncBatchNorm,
]  # fmt: skip


def network(eps=0.0):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), BatchNorm(6, eps=eps), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(6, 5, 3, bias=False), BatchNorm(5, eps=eps), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 4, bias=False), BatchNorm(4, eps=eps),
    )  # fmt: skip


def cut(x, sizes):
    """Batches of inputs alone; a list of bare tensors would be one batch, of inputs and targets."""
    return [(part, None) for part in x.split(sizes)]


def moments_of(x):
    """Mean and unbiased variance of each channel, in one pass over everything."""
    flat = x.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


@pytest.mark.parametrize("kind", TREATED)
def test_the_statistics_are_those_of_all_data_in_one_pass_however_they_are_cut(kind, draw):
    x = 3 * draw(23, 4, 3, 3) + torch.arange(23.0).reshape(-1, 1, 1, 1)  # batches that lie far apart
    layer = kind(4).double()
    calibrate_batchnorm(layer, cut(x, [9, 5, 9]))
    mean, var = moments_of(x)
    assert_close(layer.running_mean, mean, **CLOSE)
    assert_close(layer.running_var, var, **CLOSE)


def test_the_mean_of_the_variances_of_the_batches_would_be_far_too_small(draw):
    x = draw(12, 2) + 5 * torch.arange(3.0).repeat_interleave(4)[:, None]
    layer = BatchNorm(2).double()
    calibrate_batchnorm(layer, cut(x, 4))
    assert (layer.running_var > 10 * torch.stack([part.var(0) for part in x.split(4)]).mean(0)).all()


def test_batch_renorm_keeps_the_root_of_the_variance_and_eps_and_mean_only_the_mean_alone(draw):
    x = draw(30, 4, 2)
    mean, var = moments_of(x)
    renorm, only = BatchRenorm(4, eps=0.1).double(), MeanOnlyBatchNorm(4).double()
    calibrate_batchnorm(nn.Sequential(renorm), x)
    calibrate_batchnorm(nn.Sequential(only), x)
    assert_close(renorm.running_std, (var + 0.1).sqrt(), **CLOSE)
    assert_close(renorm.running_mean, mean, **CLOSE)
    assert_close(only.running_mean, mean, **CLOSE)


def test_one_batch_is_pytorch_s_own_average_of_one_batch(draw, settle):
    model = settle(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3)))
    theirs = copy.deepcopy(model)
    for layer in (theirs[1], theirs[4]):
        layer.reset_running_stats()
        layer.momentum = None
    theirs.train()(draw(40, 5))
    calibrate_batchnorm(model, draw(40, 5))
    for index in (1, 4):
        assert_close(model[index].running_mean, theirs[index].running_mean, **CLOSE)
        assert_close(model[index].running_var, theirs[index].running_var, **CLOSE)


def test_with_a_momentum_it_is_pytorch_s_moving_average(draw, settle):
    model = settle(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 3), nn.BatchNorm1d(3)))
    theirs = copy.deepcopy(model)
    theirs[3].momentum = 0.3
    batches = draw(40, 5).split([10, 20, 10])
    theirs.train()
    for batch in batches:
        theirs(batch)
    calibrate_batchnorm(model, [(batch, None) for batch in batches], momentum=0.3)
    for index in (1, 3):
        assert_close(model[index].running_mean, theirs[index].running_mean, **CLOSE)
        assert_close(model[index].running_var, theirs[index].running_var, **CLOSE)


@pytest.mark.parametrize("layerwise", [False, True])
def test_gain_noise_on_the_channels_is_removed_exactly(layerwise, draw, settle):
    clean = settle(network())
    noisy = copy.deepcopy(clean)
    for index in (0, 4, 8):
        gain = draw(len(noisy[index].weight), seed=index).exp()
        noisy[index].weight.data.mul_(gain.reshape(-1, *(1,) * (noisy[index].weight.dim() - 1)))
    x = draw(30, 2, 6, 6)
    assert not torch.allclose(noisy(x), clean(x), rtol=0.5)
    for model in (clean, noisy):
        calibrate_batchnorm(model, cut(x, 10), layerwise=layerwise)
    # Three layers deep, each of which divides by a deviation that is some tens smaller than what is summed up.
    assert_close(noisy(x), clean(x), rtol=1e-9, atol=1e-9)


def test_layer_by_layer_every_standardized_output_has_mean_0_and_variance_1_over_all_batches(draw, settle):
    model, x = settle(network()), draw(30, 2, 6, 6)
    calibrate_batchnorm(model, cut(x, [7, 11, 12]), layerwise=True)
    for index, n in ((1, 30 * 16), (5, 30 * 4), (9, 30)):
        norm = model[index]
        z = (model[: index + 1](x).transpose(0, 1).flatten(1) - norm.bias[:, None]) / norm.weight[:, None]
        assert_close(z.mean(1), torch.zeros(len(z)).double(), rtol=0, atol=1e-9)
        assert_close(z.var(1, correction=0), torch.full((len(z),), (n - 1) / n, dtype=torch.float64), rtol=1e-9, atol=0)


def test_in_one_pass_the_deeper_layers_see_the_batches_normalized_each_by_itself(draw, settle):
    once, exact, x = settle(network()), settle(network()), draw(30, 2, 6, 6)
    calibrate_batchnorm(once, cut(x, 10))
    calibrate_batchnorm(exact, cut(x, 10), layerwise=True)
    assert_close(once[1].running_var, exact[1].running_var, **CLOSE)
    assert not torch.allclose(once[5].running_var, exact[5].running_var, rtol=1e-3)
    seen = torch.cat([network_head(once, part) for part in x.split(10)])
    assert_close(once[5].running_var, moments_of(seen)[1], **CLOSE)


def network_head(model, x):
    """The input of the second norm, with the first one normalizing by the batch."""
    z = model[0](x)
    z = nn.functional.batch_norm(z, None, None, model[1].weight, model[1].bias, training=True, eps=1e-300)
    return model[4](z.relu())


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_second_calibration_on_the_same_data_changes_nothing(layerwise, draw, settle):
    model, data = settle(network(1e-5)), cut(draw(30, 2, 6, 6), 15)
    calibrate_batchnorm(model, data, layerwise=layerwise)
    first = copy.deepcopy(model.state_dict())
    calibrate_batchnorm(model, data, layerwise=layerwise)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, first[name]), name


def test_a_fixed_noise_on_a_linear_layer_shifts_mean_and_variance_as_it_must(draw):
    x, w, offset = draw(200, 6) + 1, draw(3, 6, seed=1), draw(3, 6, seed=2)
    model = nn.Sequential(nn.Linear(6, 3, bias=False), BatchNorm(3)).double()
    model[0].weight.data.copy_(w + offset)
    calibrate_batchnorm(model, cut(x, 50))
    assert_close(model[1].running_mean, w @ x.mean(0) + offset @ x.mean(0), **CLOSE)
    assert_close(model[1].running_var, ((w + offset) @ x.T.cov() @ (w + offset).T).diag(), **CLOSE)


def test_under_read_noise_the_statistics_are_averages_over_the_noise(draw):
    """Var = w' Sigma w + s^2 E|x|^2 for weights w + N(0, s^2), drawn anew for each of 25 batches and 400 units."""
    model = nn.Sequential(nn.Linear(4, 400, bias=False), BatchNorm(400)).double()
    clean, x = draw(400, 4, seed=1), draw(10, 4) + 0.5
    model[0].weight.data.copy_(clean)
    noise = WeightNoise(model, scale=0.2, resample="forward", generator=torch.Generator().manual_seed(3))
    calibrate_batchnorm(model, [(x, None)] * 25, noise=noise)
    s = 0.2 * clean.abs().max()
    of_noise = s**2 * (x.square().sum(1).mean() - x.mean(0).square().sum() / 25)  # the mean took some of it along
    expected = ((clean @ x.T.cov(correction=0) @ clean.T).diag() + of_noise) * (250 / 249)
    off = model[1].running_var - expected
    assert off.mean().abs() < 5 * off.std() / 20
    assert off.std() / 20 < 0.02 * of_noise  # so that without the noise, or with one draw of it, this would fail


def test_noise_is_on_while_the_statistics_are_taken_and_off_afterwards(draw, settle):
    model, x = settle(network()), draw(30, 2, 6, 6)
    twin = copy.deepcopy(model)
    weights = [parameter.clone() for parameter in model.parameters()]
    noise = WeightNoise(model, scale=0.3, generator=torch.Generator().manual_seed(1))
    calibrate_batchnorm(model, x, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    with WeightNoise(twin, scale=0.3, generator=torch.Generator().manual_seed(1)):
        calibrate_batchnorm(twin, x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    calibrate_batchnorm(twin, x)
    assert not torch.allclose(model[1].running_var, twin[1].running_var, rtol=0.01)


def test_nothing_but_the_running_statistics_moves(draw, settle, state_of):
    model = settle(network(1e-5)).train()
    model[4].eval()
    model[1].momentum = None
    model(draw(8, 2, 6, 6)).sum().backward()
    before, counts = state_of(model), [b.clone() for n, b in model.named_buffers() if n.endswith("tracked")]
    assert calibrate_batchnorm(model, (draw(8, 2, 6, 6), torch.zeros(8)), layerwise=True) is model
    after = state_of(model)
    assert {name for name in before if before[name] != after[name]} == {"buffers"}
    assert model[1].momentum is None
    kept = [b for n, b in model.named_buffers() if n.endswith("tracked")]
    assert all(torch.equal(a, b) for a, b in zip(counts, kept, strict=True))


def test_a_block_that_fails_leaves_modes_hooks_and_statistics(settle, state_of, draw):
    model = settle(network()).train()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        calibrate_batchnorm(model, draw(8, 2, 9, 9))  # the last linear layer does not fit
    assert state_of(model) == before


def test_only_so_many_batches_are_taken_and_a_forward_of_one_s_own_is_used(draw):
    x, layer = draw(30, 4), BatchNorm(4).double()
    calibrate_batchnorm(layer, [{"x": part} for part in x.split(10)], batches=2, forward=lambda m, b: m(2 * b["x"]))
    assert_close(layer.running_mean, 2 * x[:20].mean(0), **CLOSE)


def test_half_precision_takes_its_statistics_in_float32(draw):
    x = (draw(4000, 3) + 5).half()
    layer = BatchNorm(3).half()
    calibrate_batchnorm(layer, x)
    assert layer.running_var.dtype == torch.float16
    assert_close(layer.running_var.double(), x.double().var(0), rtol=2**-10, atol=0)


def test_a_layer_that_is_called_twice_pools_both_calls(draw):
    norm = BatchNorm(4).double()
    calibrate_batchnorm(norm, draw(20, 4), forward=lambda layer, x: layer(layer(x[:5]).detach() * 0 + x[5:10]))
    assert_close(norm.running_mean, draw(20, 4)[:10].mean(0), **CLOSE)


def test_moments_alone_are_taken_without_storing_anything(draw, settle, state_of):
    model, x = settle(network()), draw(30, 2, 6, 6)
    before = state_of(model)
    found = pooled_moments(EmpiricalRisk(model, lambda y, t: y.sum(), x, mode="eval"), {"5": model[5]})
    mean, var = moments_of(model[:5](x))
    assert_close(found["5"].mean, mean, **CLOSE)
    assert_close(found["5"].var, var, **CLOSE)
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("model", "x", "settings", "said"),
    [
        (nn.Linear(3, 3), torch.ones(4, 3), {}, "batch norm with running statistics; the model has none"),
        (BatchNorm(3, track_running_stats=False), torch.ones(4, 3), {}, "the model has none"),
        (InstanceNorm(3, track_running_stats=True), torch.ones(4, 3, 2), {}, "moments over batch and space; got Inst"),
        (BatchNorm(3), torch.ones(1, 3), {}, r"more than one value per channel; got \(1, 3\) at BatchNorm"),
        (BatchNorm(3), [], {}, "at least one batch through every layer"),
        (BatchNorm(3), torch.ones(4, 3), {"momentum": 0.0}, r"momentum in \(0, 1\]; got 0.0"),
        (BatchNorm(3), torch.ones(4, 3), {"momentum": 0.1, "layerwise": True}, "momentum=None with layerwise=True"),
    ],
)
def test_what_has_no_answer_is_refused(model, x, settings, said):
    with pytest.raises(ValueError, match=said):
        calibrate_batchnorm(model, x, **settings)


def test_a_risk_in_train_mode_is_refused(draw):
    risk = EmpiricalRisk(BatchNorm(3).double(), lambda y, t: y.sum(), draw(4, 3), mode="train")
    with pytest.raises(ValueError, match="eval mode; got 'train'"):
        calibrate_risk(risk)
