"""Filters of a random direction are as long as the network's; vectors and checkpoints are reached exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from normlens.curvature.directions import between, filter_normalized, from_vector
from normlens.curvature.surface import loss_line
from normlens.risk import EmpiricalRisk
from support.networks import batch, conv_batch_norm


def seeded(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return conv_batch_norm().to(dtype)


def risk_of(model: nn.Module) -> EmpiricalRisk:
    x, y = batch()
    return EmpiricalRisk(model, functional.cross_entropy, (x.to(next(model.parameters()).dtype), y), mode="train")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_filter_is_as_long_as_its_own_and_one_dimensional_tensors_stay(dtype):
    risk = risk_of(seeded(0, dtype))
    direction = filter_normalized(risk)
    for name, theta in risk.parameters.items():
        d = direction[name]
        assert d.dtype == theta.dtype
        if theta.ndim <= 1:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), theta.flatten(1).norm(dim=1))
            assert not torch.allclose(d, theta)


def test_a_direction_before_normalization_is_gaussian():
    model = nn.Linear(4000, 2, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)  # norms sqrt(4000), as long as a standard Gaussian is expected to be
    drawn = filter_normalized(EmpiricalRisk(model, functional.mse_loss, []))["weight"]
    assert abs(float(drawn.mean())) < 5 / 8000**0.5
    assert float((drawn**4).mean()) == pytest.approx(3, abs=5 * (96 / 8000) ** 0.5)  # Var x^4 = 105 - 9


def test_a_generator_makes_directions_that_differ_and_repeat_and_the_global_state_is_left():
    risk = risk_of(seeded(0))
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    first, second = (filter_normalized(risk, generator)["5.weight"] for _ in range(2))
    assert torch.equal(first, filter_normalized(risk)["5.weight"])
    assert not torch.allclose(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_of_zeros_has_a_direction_of_zeros():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
    assert not filter_normalized(EmpiricalRisk(model, functional.mse_loss, []))["weight"].any()


def test_a_flat_vector_is_cut_in_the_order_of_the_parameters():
    risk = risk_of(seeded(0))
    flat = torch.cat([theta.reshape(-1) for theta in risk.parameters.values()])
    for name, d in from_vector(risk, flat).items():
        assert torch.equal(d, risk.parameters[name])
    with pytest.raises(ValueError, match=rf"shape \({len(flat)},\); got \(3,\)"):
        from_vector(risk, torch.ones(3))


def test_between_reaches_the_other_checkpoint_at_one():
    here, there = risk_of(seeded(0)), risk_of(seeded(1))
    line = loss_line(here, between(here, there.model.state_dict()), steps=3)
    assert line.loss[1] == float(here.loss())
    assert line.loss[2] == pytest.approx(float(there.loss()), rel=1e3 * torch.finfo(torch.float64).eps)


def test_a_state_of_another_model_is_an_error():
    risk = risk_of(seeded(0))
    with pytest.raises(ValueError, match=r"must hold '1.weight' of shape \(4, 1, 3, 3\); got \['module.1"):
        between(risk, {f"module.{name}": t for name, t in risk.parameters.items()})
    with pytest.raises(ValueError, match=r"got one of shape \(2,\)"):
        between(risk, {**risk.parameters, "5.weight": torch.ones(2)})
