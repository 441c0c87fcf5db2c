"""The probe reads batch norm's own block, the kurtosis of the other one, and the modes that were put in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from normlens.nn import BatchNorm, GroupNorm
from normlens.probes.fisher_vector import FisherVector
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ask(model: nn.Module, x: Any, mode: str = "train", **settings: Any) -> dict[Any, Any]:
    risk = EmpiricalRisk(model.double(), lambda outputs, targets: outputs.mean(), x, mode=mode)
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator().manual_seed(0))
    return {(r.layer, r.name): r for r in FisherVector(**settings)(step)}


def read(*args: Any, **settings: Any) -> dict[Any, Any]:
    return {key: reading.value for key, reading in ask(*args, **settings).items()}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNorm])
def test_batch_norm_is_the_mean_block_in_either_mode_and_is_not_touched(kind, mode):
    layer, x = kind(3).double(), 5 + 2 * normal(20, 3, 4, 4)
    layer.weight.data.fill_(7.0), layer.running_mean.fill_(0.5)
    found = read(nn.Sequential(layer), x, mode)
    assert found["0", "bn_residual"] < 1e-12
    assert layer.running_mean.tolist() == [0.5] * 3
    assert layer.num_batches_tracked == 0
    assert layer.training
    assert (layer.weight == 7).all()


def test_a_batch_norm_that_computes_something_else_has_a_residual():
    class Halved(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    x = normal(50, 2)
    found = read(nn.Sequential(Halved(2)), x)
    expected = ((x - x.mean(0)) / x.std(0, correction=0)).abs().max().item() / 2
    assert found["0", "bn_residual"] == pytest.approx(expected, rel=1e-4)  # eps
    assert ("0", "bn_residual") not in read(nn.Sequential(GroupNorm(2, groups=1)), x[:, :, None])


def test_energy_skewness_and_kurtosis_are_scipy_s_of_all_values():
    x = normal(200, 4, 3).exp()
    found = read(nn.Sequential(nn.BatchNorm1d(4)), x)
    flat = x.movedim(1, 2).reshape(-1, 4).numpy()
    kurtosis = stats.kurtosis(flat, fisher=False)
    np.testing.assert_allclose(found["0", "skewness"], stats.skew(flat), rtol=1e-10)
    np.testing.assert_allclose(found["0", "kurtosis"], kurtosis, rtol=1e-10)
    np.testing.assert_allclose(found["0", "sigma_energy"], (kurtosis - 1) / 2, rtol=1e-10)
    assert found["0", "sigma_energy_mean"] == pytest.approx((kurtosis.mean() - 1) / 2, rel=1e-10)


def test_the_error_of_the_energy_is_the_spread_that_repetition_shows():
    """Positions share half of their variance; 100 repetitions know a spread to 7 %, and 3 of these are allowed."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    errors, values = [], []
    for seed in range(100):
        x = normal(400, 2, 1, seed=seed) + normal(400, 2, 3, seed=1000 + seed)
        reading = ask(model, x, most=1)["0", "sigma_energy_mean"]
        errors.append(reading.error), values.append(reading.value)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.25)
    assert math.isnan(ask(model, normal(1, 2, 30))["0", "sigma_energy_mean"].error)


def test_modes_that_were_put_in_are_found_and_counted():
    part = (torch.arange(1000) % 3)[:, None]
    x = torch.cat([normal(1000, 2), normal(1000, 1) + 8 * (part == 0), normal(1000, 1) + 8 * part, normal(1000, 1).exp()], 1)  # fmt: skip  # noqa: E501
    found = read(nn.Sequential(nn.BatchNorm1d(5)), x)
    np.testing.assert_array_equal(found["0", "components"][:4], [1, 1, 2, 3])
    np.testing.assert_array_equal(found["0", "modes"], [1, 1, 2, 3, 1])
    assert found["0", "components"][4] > 1
    assert found["0", "mixed"] == 3 / 5
    assert found["0", "multimodal"] == 2 / 5
    assert found["0", "separation"][2] == pytest.approx(8 / math.sqrt(2), rel=0.1)
    assert np.isnan(found["0", "separation"][:2]).all()
    assert found["0", "separation_median"] == np.nanmedian(found["0", "separation"])
    wrong = found["0", "fim_rel_err"]
    assert (wrong[:2] == 0).all()
    assert wrong[2] < 0.15 < 0.3 < wrong[4]  # modes far apart, and components of one skewed mode
    assert found["0", "fim_rel_err_mean"] == pytest.approx(wrong[2:].mean())
    assert (found["0", "channels"], found["0", "unknown"]) == (5, 0)


def test_positions_that_repeat_are_no_evidence():
    x = normal(100, 8, 1).expand(-1, -1, 40).clone()
    layer = ask(nn.Sequential(nn.BatchNorm1d(8)), x)
    assert layer["0", "mixed"].value <= 1 / 8
    assert layer["0", "components"].n == 100
    alone = read(nn.Sequential(nn.BatchNorm1d(8)), x[..., :1])
    np.testing.assert_allclose(layer["0", "bic_gain"].value, alone["0", "bic_gain"], atol=0.2)


def test_values_that_repeat_are_counted():
    x = normal(400, 2)
    x[:100, 0] = 0  # 99 of them have been there before
    found = read(nn.Sequential(nn.BatchNorm1d(2)), x)
    assert found["0", "repeated"] == pytest.approx((99 + 0) / 2 / 400)
    x[:, 1] = 3  # a constant channel is unknown, and not repeated
    assert read(nn.Sequential(nn.BatchNorm1d(2)), x)["0", "repeated"] == pytest.approx(99 / 400)


def test_values_are_at_most_as_many_as_asked_for_and_the_same_positions_at_each_step():
    x = normal(50, 2, 30)
    one, two = (ask(nn.Sequential(nn.BatchNorm1d(2)), x, values=200) for _ in range(2))
    assert one["0", "kurtosis"].n == 200
    np.testing.assert_array_equal(one["0", "kurtosis"].value, two["0", "kurtosis"].value)
    assert ask(nn.Sequential(nn.BatchNorm1d(2)), x, values=20)["0", "kurtosis"].n == 17  # every third of 50


def test_a_constant_channel_is_unknown_and_the_others_are_not():
    x = normal(300, 3)
    x[:, 1] = 4
    found = read(nn.Sequential(nn.BatchNorm1d(3)), x)
    assert found["0", "unknown"] == 1
    assert np.isnan(found["0", "components"]).tolist() == [False, True, False]
    assert np.isfinite(found["0", "sigma_energy_mean"])
    assert found["0", "multimodal"] == 0


def test_before_normalizations_or_else_nonlinearities_or_else_nothing():
    x = normal(60, 4)
    both = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    assert {layer for layer, _ in read(both, x)} == {"1"}
    assert {layer for layer, _ in read(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x)} == {"1"}
    assert read(nn.Linear(4, 4), x) == {("", "layers"): 0}
    assert {layer for layer, _ in read(both, x, layers="2")} == {"2"}


def test_channels_of_a_batch_norm_are_dimension_1_also_behind_a_linear_layer_over_the_last():
    x = normal(40, 5, 7)
    found = read(nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(5)), x)
    assert len(found["1", "components"]) == 5
    assert len(read(nn.Sequential(nn.Linear(7, 3), nn.LayerNorm(3)), x)["1", "components"]) == 3


def test_a_single_value_has_no_residual():
    with torch.no_grad():
        found = read(nn.Sequential(nn.BatchNorm1d(2)), normal(1, 2), "eval")
    assert math.isnan(found["0", "bn_residual"])
    assert found["0", "unknown"] == 2


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="values of at least 1; got 0"):
        read(nn.ReLU(), normal(3, 2), values=0)
    with pytest.raises(ValueError, match="matches none of"):
        read(nn.Sequential(nn.ReLU()), normal(3, 2), layers="nothing")
