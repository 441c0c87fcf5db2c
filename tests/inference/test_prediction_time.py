"""Prediction by the batch's own statistics is exactly that, and leaves nothing behind."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens.inference import prediction_time_batchnorm
from normlens.nn import BatchNorm, DecorrelatedBatchNorm, GhostBatchNorm, SwitchableNorm
from normlens.risk import EmpiricalRisk

EPS = torch.finfo(torch.float64).eps
CLOSE = {"rtol": 1e3 * EPS, "atol": 1e3 * EPS}


def network(kind=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), kind(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 5, 3), kind(5), nn.Flatten(),
        nn.Linear(20, 3),
    )  # fmt: skip


KINDS = [nn.BatchNorm2d, nn.SyncBatchNorm, partial(nn.BatchNorm2d, momentum=None), BatchNorm, GhostBatchNorm]


@pytest.mark.parametrize("kind", KINDS)
def test_with_blend_1_it_is_pytorch_s_batch_norm_in_train_mode(kind, draw, settle):
    model, x = settle(network(kind)), draw(9, 2, 6, 6)
    with prediction_time_batchnorm(model) as inside:
        found = inside(x)
    reference = settle(network(partial(nn.BatchNorm2d, track_running_stats=False)))
    reference.load_state_dict(model.state_dict(), strict=False)
    assert_close(found, reference(x), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_with_blend_0_it_is_the_model_to_the_bit(kind, draw, settle):
    model, x = settle(network(kind)), draw(9, 2, 6, 6)
    expected = model(x)
    with prediction_time_batchnorm(model, blend=0.0):
        assert torch.equal(model(x), expected)
        assert model(x[:1]).shape == (1, 3)


@pytest.mark.parametrize("blend", [0.25, 0.5, 1.0])
def test_between_them_mean_and_variance_are_blended(blend, draw, settle):
    norm, x = settle(BatchNorm(4)), 3 * draw(10, 4, 5) + 1
    mean = (1 - blend) * norm.running_mean + blend * x.mean((0, 2))
    var = (1 - blend) * norm.running_var + blend * x.var((0, 2), correction=0)
    with prediction_time_batchnorm(norm, blend):
        found = norm(x)
    assert_close(found, nn.functional.batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps), **CLOSE)


def test_no_batch_leaves_a_trace_in_the_next(draw, settle):
    model, x = settle(network()), draw(9, 2, 6, 6)
    with prediction_time_batchnorm(model, 0.5):
        first = model(x)
        model(100 * draw(4, 2, 6, 6, seed=1))
        assert torch.equal(model(x), first)


def test_an_affine_change_of_every_channel_at_the_input_of_a_norm_is_removed_exactly(draw, settle):
    norm, x = settle(BatchNorm(4, eps=0.0)), draw(20, 4, 3)
    gain, offset = draw(4, 1, seed=1).exp(), draw(4, 1, seed=2)
    with prediction_time_batchnorm(norm):
        assert_close(norm(gain * x + offset), norm(x), **CLOSE)
    assert not torch.allclose(norm(gain * x + offset), norm(x), rtol=0.1)


def test_a_prediction_depends_on_which_samples_are_beside_it_and_not_on_their_order(draw, settle):
    model, x = settle(network()), draw(9, 2, 6, 6)
    order = torch.tensor([3, 1, 4, 0, 5, 8, 2, 6, 7])
    with prediction_time_batchnorm(model):
        assert_close(model(x[order]), model(x)[order], **CLOSE)
        assert not torch.allclose(model(x[:5]), model(x)[:5], rtol=1e-3)


def test_a_functional_call_inside_gives_the_same_and_leaves_no_trace(draw, settle, state_of):
    model, x = settle(network()), draw(9, 2, 6, 6)
    before = state_of(model)
    with prediction_time_batchnorm(model):
        expected = model(x)
        ((found, _),) = EmpiricalRisk(model, lambda outputs, targets: outputs.sum(), x).outputs()
    assert torch.equal(found, expected)
    assert state_of(model) == before


def test_dropout_is_off_inside(draw, settle):
    model, x = settle(network()).train(), draw(9, 2, 6, 6)
    with prediction_time_batchnorm(model):
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_everything_is_the_very_object_that_it_was(fails, draw, settle, state_of):
    model = settle(network()).train()
    model[4].eval()
    before, buffers = state_of(model), {name: id(buffer) for name, buffer in model.named_buffers()}
    with pytest.raises(KeyError) if fails else nullcontext(), prediction_time_batchnorm(model):
        model(draw(9, 2, 6, 6))
        if fails:
            raise KeyError
    assert state_of(model) == before
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers


def test_a_graph_made_inside_can_be_walked_back_outside(draw, settle):
    norm, x = settle(BatchNorm(4)), draw(10, 4).requires_grad_()
    with prediction_time_batchnorm(norm):
        y = norm(x)
        norm(draw(6, 4, seed=1))
    y.sum().backward()
    scale = norm.weight / (x.var(0, correction=0) + norm.eps).sqrt()  # the statistics count as constants
    assert_close(x.grad, scale.expand_as(x).detach(), **CLOSE)


def test_layers_that_mix_the_batch_with_the_sample_blend_their_share_of_the_batch(draw, settle):
    x, layer = draw(9, 4, 5), settle(SwitchableNorm(4))
    with prediction_time_batchnorm(layer):
        found = layer(x)
    layer.train()
    assert_close(found, layer(x), **CLOSE)


def test_a_module_compiled_in_place_is_run_eagerly_inside(draw, settle):
    model, x = settle(network()), draw(9, 2, 6, 6)
    with prediction_time_batchnorm(model):
        expected = model(x)
    compiled: list[int] = []
    model.compile(backend=lambda graph, inputs: compiled.append(1) or graph.forward)
    call = model._compiled_call_impl
    with prediction_time_batchnorm(model):
        assert torch.equal(model(x), expected)
    assert not compiled
    assert model._compiled_call_impl is call


@pytest.mark.parametrize(
    ("model", "blend", "said"),
    [
        (nn.BatchNorm1d(3), 1.5, r"blend in \[0, 1\]; got 1.5"),
        (nn.BatchNorm1d(3), -0.1, r"blend in \[0, 1\]; got -0.1"),
        (nn.Linear(3, 3), 1.0, "the model has none"),
        (DecorrelatedBatchNorm(4), 1.0, "got DecorrelatedBatchNorm"),
        (torch.compile(nn.BatchNorm1d(3), backend="eager"), 1.0, "module itself.*torch.compile"),
    ],
)
def test_what_cannot_be_treated_is_refused(model, blend, said):
    with pytest.raises(ValueError, match=said), prediction_time_batchnorm(model, blend):
        pass


def test_one_value_per_channel_is_refused():
    model = nn.BatchNorm1d(3)
    with prediction_time_batchnorm(model), pytest.raises(ValueError, match="more than one value per channel"):
        model(torch.ones(1, 3))
