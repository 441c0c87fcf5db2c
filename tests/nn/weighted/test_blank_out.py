"""Blank-out transmits or blanks, draws from the caller's generator alone, and is its mean without one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normlens.nn.weighted.blank_out import BlankOut, check_probability, normal, sampling, uniform


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_numbers_pass_whole_or_not_at_all_with_the_probability_asked(draw):
    x = draw(100_000)
    y = BlankOut(0.3)(x, generator())
    passed = y != 0
    assert torch.equal(y[passed], x[passed])
    assert abs(passed.double().mean().item() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / len(x))
    assert torch.equal(BlankOut(0.3)(x), 0.3 * x)


def test_samples_have_the_mean_that_is_returned_without_a_generator(draw):
    x, layer, source = draw(6), BlankOut(0.25), generator(1)
    mean = torch.stack([layer(x, source) for _ in range(20_000)]).mean(0)
    assert float(((mean - layer(x)) / x).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / 20_000)


def test_inside_the_block_every_layer_samples_and_outside_none_does(draw):
    model, x = nn.Sequential(BlankOut(), nn.Sequential(BlankOut())), draw(50)
    before = torch.random.get_rng_state()
    with sampling(model, generator(3)) as same:
        assert same is model
        first, second = model(x), model.eval()(x)
    with sampling(model, generator(3)):
        again = model(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(model(x), 0.25 * x)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_block_ends_when_it_raises_and_gives_back_the_source_around_it(draw):
    model, outer = BlankOut(), generator(1)
    with sampling(model, outer):
        with pytest.raises(RuntimeError, match="inside"), sampling(model, generator(2)):
            raise RuntimeError("inside")
        assert model.source is outer
    assert model.source is None


def test_every_dtype_sees_the_same_noise(draw):
    x = draw(1000).abs() + 1
    masks = [BlankOut()(x.to(dtype), generator(4)) != 0 for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert BlankOut()(x.half(), generator()).dtype == torch.float16
    assert uniform((2,), generator()).dtype == normal((2,), generator()).dtype == torch.float32


def test_on_a_weight_it_is_one_mask_for_the_batch(draw):
    layer = nn.Linear(30, 20, bias=False, device="meta", dtype=torch.float64).to_empty(device="cpu")
    layer.weight.data = draw(20, 30)
    parametrize.register_parametrization(layer, "weight", BlankOut())
    with sampling(layer, generator(5)):
        y = layer(torch.eye(30, dtype=torch.float64)).T
    whole = layer.parametrizations.weight.original
    passed = y != 0
    assert 0.3 < passed.double().mean().item() < 0.7
    assert torch.equal(y[passed], whole[passed])


def test_the_gradient_of_a_sample_is_its_mask(draw):
    x = draw(40).requires_grad_()
    y = BlankOut()(x, generator(6))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, (y != 0).double())


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, math.nan])
def test_a_probability_that_leaves_nothing_random_is_refused(p):
    with pytest.raises(ValueError, match=r"BlankOut needs p between 0 and 1, both excluded; got .*; use 0.5"):
        BlankOut(p)
    with pytest.raises(ValueError, match="Layer needs p"):
        check_probability("Layer", p)
    assert repr(BlankOut(0.2)) == "BlankOut(p=0.2)"


def test_a_model_without_a_stochastic_layer_is_refused():
    with pytest.raises(ValueError, match="stochastic layer; got Identity without one; build it of NSMLinear"):
        sampling(nn.Identity(), generator()).__enter__()
