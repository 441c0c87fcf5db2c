"""The probe hands on the condition numbers of what a layer really sees, with tolerance, floor and nullity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlens.curvature.activation_condition import activation_condition
from normlens.probes.activation_condition import ActivationCondition
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model: nn.Module, x: Tensor, **settings: Any) -> dict[tuple[str, str], float]:
    risk = EmpiricalRisk(model.to(x.dtype), lambda outputs, _: outputs.mean(), (x, x))
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(r.layer, r.name): float(r.value) for r in ActivationCondition(**settings)(step)}


def test_the_worked_example_has_its_three_condition_numbers():
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]], dtype=torch.float64)
    found = read(nn.Sequential(nn.Linear(2, 1)), x, layers="0")
    kappas = [found["0", f"kappa_{matrix}"] for matrix in ("raw", "centered", "normalized")]
    assert kappas == pytest.approx([15.2592240609, 2, 1], rel=1e-10)
    assert [found["0", f"nullity_{m}"] for m in ("raw", "centered", "normalized")] == [0, 0, 0]
    assert (found["0", "features"], found["0", "constant"]) == (2, 0)


CONVOLUTIONS = [
    nn.Conv1d(2, 3, 3, padding=1),
    nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)),
    nn.Conv2d(2, 3, 3, dilation=2, padding="same", padding_mode="circular"),
    nn.Conv3d(2, 3, 2),
]


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=repr)
def test_the_rows_of_a_convolution_are_what_its_weights_are_multiplied_with(module):
    """A convolution whose kernels are the unit vectors returns its patches."""
    spatial = len(module.kernel_size)
    x = normal(10, 2, *(5,) * spatial)
    found = read(nn.Sequential(module), x, layers="0", rows=10**6)
    m = module.weight[0].numel()
    kernels = torch.eye(m, dtype=torch.float64).reshape(m, *module.weight.shape[1:])
    settings = {name: getattr(module, name) for name in ("stride", "dilation", "padding", "padding_mode")}
    unit = type(module)(2, m, module.kernel_size, bias=False, **settings).double()
    unit.weight.data.copy_(kernels)
    patches = unit(x).detach().movedim(1, -1).reshape(-1, m)
    expected = activation_condition(patches)
    assert found["0", "kappa_raw"] == pytest.approx(expected.raw, rel=1e-9)
    assert found["0", "kappa_centered"] == pytest.approx(expected.centered, rel=1e-9)
    assert found["0", "kappa_normalized"] == pytest.approx(expected.normalized, rel=1e-9)


def test_rows_are_samples_and_positions_and_at_most_as_many_as_asked_for():
    x = normal(12, 5, 3)
    model = nn.Sequential(nn.Linear(3, 2))
    expected = activation_condition(x.reshape(-1, 3))
    assert read(model, x, layers="0")["0", "kappa_raw"] == pytest.approx(expected.raw, rel=1e-10)
    risk = EmpiricalRisk(model, lambda outputs, _: outputs.mean(), (x, x))
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    assert {r.n for r in ActivationCondition(rows=20, layers="0")(step) if r.name == "kappa_raw"} == {20}


def test_the_draw_of_rows_is_that_of_the_seed_alone():
    x, model = normal(50, 7, 3), nn.Sequential(nn.Linear(3, 2))
    first, again, other = (read(model, x, layers="0", rows=30, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["0", "kappa_raw"] != other["0", "kappa_raw"]
    drawn = x.reshape(-1, 3)[torch.randperm(350, generator=torch.Generator().manual_seed(0))[:30]]
    assert first["0", "kappa_raw"] == pytest.approx(activation_condition(drawn).raw, rel=1e-10)


def test_directions_below_the_tolerance_are_null_and_counted():
    x = normal(60, 4)
    x[:, 3] = x[:, :3].sum(1) + 1e-7 * x[:, 3]
    model = nn.Sequential(nn.Linear(4, 2))
    fine, coarse = (read(model, x, layers="0", tolerance=t) for t in (1e-12, 1e-5))
    assert (fine["0", "nullity_raw"], coarse["0", "nullity_raw"]) == (0, 1)
    assert fine["0", "kappa_raw"] > 1e6
    values = np.linalg.svd(np.hstack([np.ones((60, 1)), x.numpy()]), compute_uv=False)
    assert coarse["0", "kappa_raw"] == pytest.approx(values[0] / values[3], rel=1e-6)
    assert coarse["0", "tolerance"] == 1e-5


def test_the_tolerance_is_never_below_the_floor_of_the_activations_precision():
    x = normal(60, 4).float()
    x[:, 3] = x[:, :3].sum(1)  # to rounding
    found = read(nn.Sequential(nn.Linear(4, 2)), x, layers="0", tolerance=1e-12)
    floor = 8 * torch.finfo(torch.float32).eps
    assert found["0", "tolerance"] == found["0", "floor"] == pytest.approx(floor)
    assert found["0", "nullity_raw"] == 1
    assert found["0", "kappa_raw"] < 100


def test_fewer_rows_than_columns_leave_the_others_null():
    found = read(nn.Sequential(nn.Linear(9, 2)), normal(4, 9), layers="0")
    assert found["0", "nullity_raw"] == 10 - 4
    assert found["0", "nullity_centered"] == 10 - 4
    assert found["0", "kappa_centered"] >= 1


def test_of_full_rank_centering_never_worsens_a_layer_and_a_constant_feature_is_counted():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model[::2]:
            module.reset_parameters()
    found = read(model, normal(200, 5) + 1)
    layers = {layer for layer, _ in found}
    assert layers == {"0", "2", "4"}
    for layer in layers:
        if found[layer, "nullity_raw"] == found[layer, "nullity_centered"] == 0:
            assert found[layer, "kappa_centered"] <= found[layer, "kappa_raw"]
    model[0].weight.data[0] = 0  # a unit that says the same of every sample
    model[0].bias.data[0] = 1
    dead = read(model, normal(200, 5) + 1)
    assert dead["2", "constant"] == found["2", "constant"] + 1
    assert dead["2", "nullity_normalized"] == found["2", "nullity_normalized"] + 1


def test_what_is_left_out_is_counted():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 2, 1)
    )
    found = read(model, normal(6, 2, 5, 5))
    assert (found["", "layers"], found["", "left_out"]) == (2, 2)
    assert {layer for layer, _ in found} == {"", "0", "3"}
    narrow = read(nn.Sequential(nn.Linear(9, 2)), normal(20, 9), widest=8)
    assert narrow == {("", "layers"): 0, ("", "left_out"): 1}
    assert read(nn.Sequential(nn.BatchNorm1d(3)), normal(20, 3)) == {("", "layers"): 0, ("", "left_out"): 0}
    assert ("", "layers") not in read(nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 2)), normal(20, 3))


def test_data_that_nobody_centered_are_seen_at_the_first_layer():
    found = read(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), normal(400, 3) + 30)
    exact = activation_condition(normal(400, 3) + 30)
    assert found["0", "kappa_raw"] == pytest.approx(exact.raw, rel=1e-9)
    assert found["0", "kappa_raw"] > 100 * found["0", "kappa_centered"]


def test_a_layer_that_is_not_finite_is_nan_and_the_others_are_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    model[1].weight.data.fill_(math.nan)
    found = read(model, normal(30, 3))
    assert math.isfinite(found["1", "kappa_raw"])
    assert math.isnan(found["2", "kappa_raw"])
    assert math.isnan(found["2", "nullity_normalized"])


def test_a_tolerance_lies_between_0_and_1():
    with pytest.raises(ValueError, match=r"needs a tolerance between 0 and 1; got 2.0; try 1e-5"):
        ActivationCondition(tolerance=2.0)
