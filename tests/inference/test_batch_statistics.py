"""Which layers have statistics that are moments of their input, and how those are seen and set."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlens import catalog
from normlens.inference.batch_statistics import observed, pooled_layers, set_moments, stored_moments
from normlens.nn import BatchNorm, BatchRenorm, DecorrelatedBatchNorm, MeanOnlyBatchNorm, MixtureNorm
from normlens.nn.base import Normalization
from normlens.nn.functional import Moments

EPS = torch.finfo(torch.float64).eps
REFUSED = {
    "decorrelated_batch_norm", "iterative_norm", "mixture_norm", "sequence_batch_norm", "power_norm",
    "moving_average_batch_norm",
}  # fmt: skip


@pytest.mark.parametrize("name", catalog.names("normlens.nn"))
def test_every_layer_with_running_statistics_is_either_treated_or_refused(name):
    kind = catalog.load("normlens.nn", name)
    if not (isinstance(kind, type) and issubclass(kind, Normalization)):
        return
    layer = kind(8)
    has = any(key.startswith("running_") for key, _ in layer.named_buffers())
    if has and name in REFUSED:
        with pytest.raises(ValueError, match=f"got {kind.__name__} at ''"):
            pooled_layers(layer, what="a test")
    else:
        assert list(pooled_layers(layer, what="a test")) == ([""] if has else [])


def test_a_layer_that_is_treated_uses_in_eval_mode_just_what_is_set(draw):
    """Given the moments of its input it answers as the plain batch norm does on batch statistics."""
    x = 3 * draw(20, 4, 3) + 1
    mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
    expected = nn.functional.batch_norm(x, None, None, training=True, eps=1e-3)
    for layer in (BatchNorm(4, eps=1e-3), BatchRenorm(4, eps=1e-3), nn.BatchNorm1d(4, eps=1e-3)):
        set_moments(layer.double().eval(), Moments(mean, var))
        assert_close(layer(x), expected, rtol=100 * EPS, atol=100 * EPS)


def test_what_is_set_can_be_read_and_the_old_tensors_are_not_touched(draw):
    layer = BatchNorm(3).double()
    old = layer.running_mean
    set_moments(layer, Moments(draw(3), draw(3, seed=1).abs()))
    assert torch.equal(old, torch.zeros(3).double())
    assert torch.equal(stored_moments(layer).mean, draw(3))
    assert torch.equal(stored_moments(layer).var, draw(3, seed=1).abs())
    assert stored_moments(MeanOnlyBatchNorm(3)).var.isnan().all()
    assert stored_moments(BatchNorm(3).half()).mean.dtype == torch.float32


def test_each_input_is_told_with_its_count_and_biased_moments(draw):
    model, told = nn.Sequential(BatchNorm(4), BatchNorm(4)).double().eval(), []
    with observed({"1": model[1]}, lambda layer, count, moments: told.append((layer, count, moments))):
        model(draw(5, 4, 3))
    model(draw(5, 4, 3))  # after the block nobody is told anything
    ((layer, count, moments),) = told
    z = model[0](draw(5, 4, 3))
    assert layer is model[1]
    assert count == 15
    assert_close(moments.mean, z.mean((0, 2)), rtol=0, atol=10 * EPS)
    assert_close(moments.var, z.var((0, 2), correction=0), rtol=100 * EPS, atol=0)


def test_layers_of_another_sense_and_lazy_ones_are_refused():
    model = nn.Sequential(BatchNorm(4), nn.Sequential(MixtureNorm(4)))
    with pytest.raises(ValueError, match=r"a test needs .* got MixtureNorm at '1.0'"):
        pooled_layers(model, what="a test")
    with pytest.raises(ValueError, match="DecorrelatedBatchNorm"):
        pooled_layers(DecorrelatedBatchNorm(4), what="a test")
    with pytest.raises(ValueError, match="LazyBatchNorm1d has not seen its first batch"):
        pooled_layers(nn.Sequential(nn.LazyBatchNorm1d()), what="a test")


def test_a_running_mean_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="a running mean must be a tensor; got None"):
        stored_moments(BatchNorm(3, track_running_stats=False))
