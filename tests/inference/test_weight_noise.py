"""The noise has the moments it says, comes from the generator alone, and is gone afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from normlens.inference import WeightNoise

EPS = torch.finfo(torch.float64).eps


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(*shape, dtype=torch.float64, seed=0):
    """A layer whose weight has entries of many sizes, the largest of them 2."""
    model = nn.Linear(*reversed(shape), dtype=dtype)
    weight = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
    model.weight.data.copy_(2 * weight / weight.abs().max())
    return model


def noise_on(model, *settings, **named):
    clean = model.weight.detach().clone()
    with WeightNoise(model, *settings, **named):
        return (model.weight.detach() - clean), clean


# standard deviation and excess kurtosis of the noise, in units of scale and of the kind's own measure
MOMENTS = {"gaussian": (1.0, 0.0), "multiplicative": (1.0, 0.0), "uniform": (1 / math.sqrt(3), -1.2)}


@pytest.mark.parametrize("kind", MOMENTS)
def test_mean_deviation_and_kurtosis_are_those_of_the_kind(kind):
    n, scale = 400 * 500, 0.07
    noise, weight = noise_on(model_of(400, 500), kind, scale, generator=seeded(1))
    unit = noise / (weight if kind == "multiplicative" else 2.0) / scale
    deviation, excess = MOMENTS[kind]
    fourth = (excess + 3) * deviation**4
    assert abs(unit.mean()) < 5 * deviation / math.sqrt(n)
    assert abs(unit.square().mean() - deviation**2) < 5 * math.sqrt((fourth - deviation**4) / n)
    eighth = 105.0 if excess == 0 else 1 / 9
    assert abs(unit.pow(4).mean() - fourth) < 5 * math.sqrt((eighth - fourth**2) / n)
    if kind == "uniform":
        assert unit.abs().max() <= 1


def test_the_noise_of_different_weights_and_tensors_is_independent():
    model = nn.Sequential(model_of(300, 300), model_of(300, 300, seed=1))
    clean = [layer.weight.detach().clone() for layer in model]
    with WeightNoise(model, generator=seeded(1)):
        first, second = ((layer.weight - was).flatten() for layer, was in zip(model, clean, strict=True))
    for a, b in ((first, second), (first[:-1], first[1:]), (first[:-300], first[300:])):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / math.sqrt(len(a))


def test_the_same_seed_gives_the_same_noise_and_another_one_another():
    one, same, other = (noise_on(model_of(9, 7), generator=seeded(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_two_of_one_generator_differ_and_the_global_random_state_is_not_used(state_of):
    model, generator = model_of(9, 7), seeded()
    before = state_of(model)
    first, second = (noise_on(model, generator=generator)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert state_of(model) == before


def test_programming_noise_is_the_same_at_every_call_and_in_every_block():
    model, x = model_of(3, 4), torch.eye(4, dtype=torch.float64)
    noise = WeightNoise(model, generator=seeded())
    seen = []
    for _ in range(2):
        with noise:
            seen += [model(x), model(x)]
    assert all(torch.equal(y, seen[0]) for y in seen)
    assert not torch.equal(model(x), seen[0])


def test_read_noise_is_new_at_every_call_of_the_model():
    model, x = model_of(3, 4), torch.eye(4, dtype=torch.float64)
    with WeightNoise(model, resample="forward", generator=seeded()) as noise:
        seen = [model(x) for _ in range(3)]
    with noise:
        seen.append(model(x))
    again = WeightNoise(model, resample="forward", generator=seeded())
    with again:
        assert torch.equal(model(x), seen[0])
    assert len({tuple(y.flatten().tolist()) for y in seen}) == 4
    assert not model._forward_pre_hooks


def test_read_noise_reaches_parts_whose_weights_are_used_without_calling_them():
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(1, 3, 4, generator=seeded(), dtype=torch.float64)
    with WeightNoise(attention, resample="forward", generator=seeded()):
        before = attention.out_proj.weight.clone()
        attention(x, x, x)
        assert not torch.equal(attention.out_proj.weight, before)


@pytest.mark.parametrize("resample", ["once", "forward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_weights_come_back_bit_by_bit_also_after_an_exception(resample, dtype, state_of):
    model = nn.Sequential(model_of(5, 6, dtype=dtype), nn.BatchNorm1d(5), model_of(2, 5, dtype=dtype))
    model[0].weight.data[0, :3] = torch.tensor([math.nan, -0.0, math.inf])
    before, places = state_of(model), [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(KeyError), WeightNoise(model, resample=resample, generator=seeded()):
        assert state_of(model)["parameters"] != before["parameters"]
        model[2].weight.data.zero_()
        raise KeyError
    assert state_of(model) == before
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_matrices_and_kernels_are_noisy_and_biases_and_norms_are_not():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.LSTM(3, 4), nn.Embedding(5, 2))
    clean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with WeightNoise(model, generator=seeded()):
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, clean[name])}
    assert changed == {"0.weight", "3.weight_ih_l0", "3.weight_hh_l0", "4.weight"}


def test_a_scale_of_0_is_no_noise_and_the_noise_is_proportional_to_it():
    model = model_of(9, 7)
    assert noise_on(model, scale=0.0, generator=seeded())[0].abs().max() == 0
    small, large = (noise_on(model, scale=scale, generator=seeded())[0] for scale in (0.1, 0.2))
    torch.testing.assert_close(large, 2 * small, rtol=0, atol=8 * EPS)


def test_a_graph_that_was_made_before_can_still_be_walked_back():
    model, x = model_of(3, 4), torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    y, weight = model(x).sum(), model.weight.detach().clone()
    with WeightNoise(model, generator=seeded()):
        pass
    y.backward()
    torch.testing.assert_close(x.grad[0], weight.sum(0), rtol=4 * EPS, atol=4 * EPS)


def test_drawn_numbers_are_the_same_on_every_device_and_in_half_precision_up_to_rounding():
    wide, half = model_of(9, 7, dtype=torch.float32), model_of(9, 7, dtype=torch.float16)
    noise, _ = noise_on(wide, generator=seeded())
    rough, _ = noise_on(half, generator=seeded())
    torch.testing.assert_close(rough.float(), noise, rtol=2**-9, atol=4 * 2**-10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "pink"}, "kind to be one of .*gaussian.*; got 'pink'"),
        ({"resample": "often"}, "resample to be one of .*; got 'often'"),
        ({"scale": -0.1}, "scale of at least 0; got -0.1"),
        ({"scale": math.inf}, "finite scale"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        WeightNoise(model_of(2, 2), generator=seeded(), **settings)


def test_a_model_without_matrices_and_a_second_entry_are_refused():
    with pytest.raises(ValueError, match="two dimensions or more; the model has none"):
        WeightNoise(nn.BatchNorm1d(3), generator=seeded())
    noise = WeightNoise(model_of(2, 2), generator=seeded())
    with noise, pytest.raises(ValueError, match="one block at a time"):
        noise.__enter__()
