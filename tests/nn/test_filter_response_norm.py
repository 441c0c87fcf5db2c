"""Filter response norm makes each map's mean square one; its activation cuts off at a learned threshold."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from normlens.nn.filter_response_norm import FilterResponseNorm, ThresholdedLinearUnit
from normlens.nn.functional import mean_square
from normlens.nn.instance_norm import InstanceNorm
from normlens.nn.rms_norm import RMSNorm

SHAPES = [(3, 4, 5), (3, 4, 3, 2), (2, 4, 3, 2, 2)]


def test_1_2_3_4_becomes_the_vector_worked_out_by_hand_and_is_cut_at_the_threshold():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64).reshape(1, 1, 2, 2)
    y = FilterResponseNorm(1, dtype=torch.float64)(x)
    assert_close(y.flatten().tolist(), [0.3651483, 0.7302967, 1.0954450, 1.4605934], rtol=0, atol=5.1e-8)
    unit = ThresholdedLinearUnit(1, dtype=torch.float64)
    unit.threshold.data += 1
    assert_close(unit(y).flatten().tolist(), [1.0, 1.0, 1.0954450, 1.4605934], rtol=0, atol=5.1e-8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_map_has_mean_square_one_before_the_affine(draw, shape, training):
    y = FilterResponseNorm(4, eps=0.0, dtype=torch.float64).train(training)(draw(*shape) * 2 + 1)
    ones = torch.ones(shape[:2], dtype=torch.float64)
    assert_close(mean_square(y, tuple(range(2, y.dim()))).reshape(shape[:2]), ones, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_on_maps_of_mean_zero_it_is_instance_norm_with_its_affine(draw, shape):
    ours, theirs = FilterResponseNorm(4, eps=1e-3, dtype=torch.float64), InstanceNorm(4, eps=1e-3, dtype=torch.float64)
    ours.weight.data = theirs.weight.data = draw(4)
    ours.bias.data = theirs.bias.data = draw(4)
    x = draw(*shape)
    x = x - x.mean(tuple(range(2, x.dim())), keepdim=True)
    assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_on_one_channel_it_is_rms_norm(draw):
    x = draw(3, 1, 5) + 2
    ours, theirs = FilterResponseNorm(1, dtype=torch.float64), RMSNorm(1, eps=1e-6, dtype=torch.float64)
    assert_close(ours(x), theirs(x), rtol=1e-13, atol=1e-13)


def test_a_positive_scale_of_each_map_does_not_matter_its_sign_carries_over_and_a_shift_matters(draw):
    layer, x = FilterResponseNorm(4, eps=0.0, dtype=torch.float64), draw(3, 4, 5)
    assert_close(layer(x * draw(3, 4, 1).exp()), layer(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(-x), -layer(x))
    assert (layer(x + 1) - layer(x)).abs().max() > 0.1


def test_a_sample_is_normalized_without_regard_to_the_others(draw):
    layer, x = FilterResponseNorm(4, dtype=torch.float64), draw(3, 4, 5)
    assert_close(layer(x)[1:2], layer(x[1:2]), rtol=1e-13, atol=1e-13)


def test_eps_is_the_papers_fixed_or_learned_unless_given():
    assert FilterResponseNorm(4).eps == 1e-6
    assert FilterResponseNorm(4).learned_eps is None
    assert FilterResponseNorm(4, learn_eps=True).learned_eps.item() == pytest.approx(1e-4)
    assert FilterResponseNorm(4, learn_eps=True, eps=0.5).learned_eps.item() == 0.5


@pytest.mark.parametrize("start", [0.3, -0.3])
def test_a_learned_eps_enters_by_its_absolute_value(draw, start):
    layer, x, g = FilterResponseNorm(4, learn_eps=True, dtype=torch.float64), draw(3, 4, 5), draw(3, 4, 5)
    layer.learned_eps.data.fill_(start)
    y = layer(x)
    assert_close(y, FilterResponseNorm(4, eps=0.3, dtype=torch.float64)(x), rtol=1e-13, atol=1e-13)
    (got,) = torch.autograd.grad(y, layer.learned_eps, g)
    sign = 1 if start > 0 else -1
    want = -0.5 * sign * (g * x * (mean_square(x, (2,)) + 0.3) ** -1.5).sum()
    assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_single_position_needs_a_learned_eps(draw):
    for shape in ((3, 4), (3, 4, 1, 1)):
        x = draw(*shape)
        match = r"FilterResponseNorm\(4\) needs more than one position in space while eps is fixed; got \(3, 4.*sign"
        with pytest.raises(ValueError, match=match):
            FilterResponseNorm(4, dtype=torch.float64)(x)
        soft = FilterResponseNorm(4, learn_eps=True, dtype=torch.float64)
        assert_close(soft(x), x / (x.square() + 1e-4).sqrt(), rtol=1e-13, atol=0)


def test_reset_parameters_makes_it_new(draw):
    layer = FilterResponseNorm(4, learn_eps=True, dtype=torch.float64)
    new = {key: value.clone() for key, value in layer.state_dict().items()}
    for parameter in layer.parameters():
        parameter.data += 1
    layer.reset_parameters()
    assert all(torch.equal(new[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("shape", [(3, 4), *SHAPES])
def test_the_unit_is_a_relu_about_its_threshold_and_a_relu_at_the_start(draw, shape):
    unit, y = ThresholdedLinearUnit(4, dtype=torch.float64), draw(*shape)
    assert torch.equal(unit(y), y.relu())
    unit.threshold.data = draw(4)
    threshold = unit.threshold.reshape(1, 4, *(1,) * (len(shape) - 2))
    assert_close(unit(y), (y - threshold).relu() + threshold, rtol=1e-14, atol=1e-14)


def test_what_is_cut_off_sends_its_gradient_to_the_threshold(draw):
    unit, y, g = ThresholdedLinearUnit(4, dtype=torch.float64), draw(3, 4, 5).requires_grad_(), draw(3, 4, 5)
    unit.threshold.data = 0.5 * draw(4)
    cut = y < unit.threshold[:, None]
    assert 0 < cut.sum() < cut.numel()
    of_input, of_threshold = torch.autograd.grad(unit(y), [y, unit.threshold], g)
    assert_close(of_input, torch.where(cut, 0, g), rtol=0, atol=0)
    assert_close(of_threshold, torch.where(cut, g, 0).sum((0, 2)), rtol=1e-13, atol=1e-13)


def test_the_unit_keeps_the_dtype_shows_its_channels_and_starts_anew(draw):
    unit = ThresholdedLinearUnit(4)
    assert unit(draw(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert repr(unit) == "ThresholdedLinearUnit(4)"
    assert ThresholdedLinearUnit(4, device="meta", dtype=torch.float64).threshold.is_meta
    unit.threshold.data += 1
    unit.reset_parameters()
    assert unit.threshold.tolist() == [0.0] * 4


@pytest.mark.parametrize("shape", [(4,), (3, 5, 4)])
def test_a_wrong_number_of_channels_is_refused_by_the_unit(shape):
    match = r"ThresholdedLinearUnit\(4\) needs \(N, C, \*spatial\) with 4 channels at dim 1; got .*; build it for"
    with pytest.raises(ValueError, match=match):
        ThresholdedLinearUnit(4)(torch.ones(shape))
