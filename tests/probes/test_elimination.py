"""Distances to elimination are the closed forms, and dead channels are counted, neither missed nor invented."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from normlens.nn.batch_channel_norm import BatchChannelNorm
from normlens.probes.elimination import Elimination
from normlens.risk import EmpiricalRisk
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Step

EPS = torch.finfo(torch.float64).eps
TINY = 1e-30  # torch refuses eps = 0 in batch norm; this is nothing beside any variance here


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model: nn.Module, *batches: Tensor, mode: str = "train", **settings: Any) -> dict[tuple[str, str], Any]:
    risk = EmpiricalRisk(
        model.double(), lambda outputs, targets: outputs.mean(), [(x, None) for x in batches], mode=mode
    )
    for module in model.modules():  # as the lens does for probes that call a module themselves
        module.training = mode == "train"
    step = Step(0, risk, Activations(risk), Previous(), None, torch.Generator())
    return {(r.layer, r.name): r.value for r in Elimination(**settings)(step)}


def batch_norm(channels: int, eps: float = TINY) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=eps)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(2))
    return layer


def test_behind_batch_norm_the_offset_is_beta_over_gamma_whatever_the_data():
    norm = batch_norm(6)
    for scale in (1, 1e-3, 1e3):
        found = read(nn.Sequential(norm, nn.ReLU()), scale * normal(8, 6, 3, 3).exp())
        expected = (norm.bias / norm.weight.abs()).detach()
        # Each moment pools 72 values; their rounding is divided by a scale that gamma may have made small.
        np.testing.assert_allclose(found["1", "offset"], expected, rtol=1e3 * EPS)
        assert found["1", "margin"] == pytest.approx(expected.min().item(), rel=1e3 * EPS)


def test_with_eps_the_offset_grows_by_the_scale_that_eps_takes_away():
    norm, x = batch_norm(4, eps=0.5), normal(16, 4, 2, 2)
    variance = x.var((0, 2, 3), correction=0)
    found = read(nn.Sequential(norm, nn.ReLU()), x)
    expected = (norm.bias / norm.weight.abs()).detach() * ((variance + 0.5) / variance).sqrt()
    np.testing.assert_allclose(found["1", "offset"], expected, rtol=1e3 * EPS)


@pytest.mark.parametrize("offset", [-3.0, -2.0, -1.0, 0.0, 1.5])
def test_a_gaussian_channel_is_off_with_probability_phi_of_minus_its_offset(offset):
    n = 40_000
    found = read(nn.Sequential(nn.ReLU()), normal(n, 1) + offset)
    off = stats.norm.cdf(-offset)
    assert found["0", "deactivation_rate"][0] == pytest.approx(off, abs=4 * math.sqrt(off * (1 - off) / n))
    assert found["0", "offset"][0] == pytest.approx(offset, abs=4 * math.sqrt((1 + offset**2 / 2) / n))


def test_no_channel_is_more_often_active_than_cantelli_allows():
    """For the sample itself as distribution; two values with the right weights reach the bound."""
    heavy = normal(500, 8).exp().square() - torch.linspace(0.1, 20, 8).double()
    extreme = torch.full((100, 2), -1.0, dtype=torch.float64)
    extreme[:20, 0], extreme[:50, 1] = 1e-9, 1e-9
    for x in (heavy, -heavy, extreme):
        found = read(nn.Sequential(nn.ReLU()), x)
        s, active = found["0", "offset"], 1 - found["0", "deactivation_rate"]
        assert np.all(active[s < 0] <= 1 / (1 + s[s < 0] ** 2) + EPS)
        assert np.all(active[s > 0] >= s[s > 0] ** 2 / (1 + s[s > 0] ** 2) - EPS)
    np.testing.assert_allclose(active, 1 / (1 + s**2), rtol=1e-8)


@pytest.mark.parametrize(("offset", "active", "bound"), [(-1, 0.158655, 0.5), (-2, 0.022750, 0.2), (-3, 0.001350, 0.1)])
def test_the_gaussian_prediction_is_phi_of_the_offset_and_lies_below_cantelli_s_bound(offset, active, bound):
    """T3, for two values of which each has probability one half: they are active never or always."""
    x = torch.tensor([-1.0, 1.0]).double().repeat(50)[:, None] + offset
    found = read(nn.Sequential(nn.ReLU()), x)
    assert found["0", "mean"] == pytest.approx([offset])
    assert found["0", "std"] == pytest.approx([1])
    assert found["0", "activity_gaussian"] == pytest.approx([active], abs=5e-7)
    assert found["0", "activity_gap"] == pytest.approx([-active], abs=5e-7)
    assert active < bound == 1 / (1 + offset**2)


def test_the_gap_is_what_is_active_beyond_the_gaussian_prediction():
    """An exponential variable less q is positive with probability exp(-q); a normal one has no gap."""
    n, q = 40_000, 2.0
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = read(nn.Sequential(nn.ReLU()), torch.cat([-uniform.log() - q, normal(n, 1) - 1], 1))
    expected = [math.exp(-q) - stats.norm.cdf(1 - q), 0]
    np.testing.assert_allclose(found["0", "activity_gap"], expected, atol=4 * 0.5 / math.sqrt(n))


def test_dead_and_nearly_dead_channels_are_counted_exactly():
    x = -torch.ones(200, 5, dtype=torch.float64)
    for channel, active in enumerate((0, 1, 2, 3, 200)):  # rates 1, 0.995, 0.99, 0.985, 0
        x[:active, channel] = 1
    found = read(nn.Sequential(nn.ReLU()), x)
    np.testing.assert_allclose(found["0", "deactivation_rate"], [1, 0.995, 0.99, 0.985, 0], rtol=EPS)
    assert (found["0", "channels"], found["0", "dead"], found["0", "near_dead"]) == (5, 1, 3)
    assert read(nn.Sequential(nn.ReLU()), x, delta=0.015)["0", "near_dead"] == 4


def test_a_unit_that_is_active_in_one_batch_of_several_is_not_dead():
    x = -normal(30, 3).abs()
    x[29, 1] = 1e-6
    found = read(nn.Sequential(nn.ReLU(inplace=True)), *x.split([13, 13, 4]))
    assert found["0", "dead"] == 2
    assert found["0", "deactivation_rate"].tolist() == [1, pytest.approx(29 / 30, rel=EPS), 1]


def test_zero_counts_as_off_for_relu_passes_no_gradient_there():
    assert read(nn.Sequential(nn.ReLU()), torch.zeros(4, 2).double())["0", "dead"] == 2


@pytest.mark.parametrize(("value", "offset", "dead"), [(-2.0, -math.inf, 1), (0.0, -math.inf, 1), (0.1, math.inf, 0)])
def test_a_constant_channel_is_infinitely_far_on_its_side(value, offset, dead):
    norm = batch_norm(3)
    with torch.no_grad():
        norm.weight[:] = torch.tensor([1.0, 0.0, 1.0])
        norm.bias[:] = torch.tensor([0.0, value, 0.5])
    found = read(nn.Sequential(norm, nn.ReLU()), normal(7, 3, 3, 3))
    assert found["1", "offset"][1] == offset
    assert found["1", "dead"] == dead
    assert math.isinf(found["1", "margin"]) == bool(dead)


def test_where_the_nonlinearity_is_not_flat_nothing_is_called_dead():
    found = read(nn.Sequential(nn.LeakyReLU()), -normal(9, 3).abs())
    assert {("0", name) for name in ("offset", "deactivation_rate", "margin", "channels")} <= set(found)
    assert not {name for _, name in found} & {"dead", "near_dead"}


def test_a_channel_with_nan_is_neither_alive_nor_dead():
    x = -normal(9, 3).abs()
    x[4, 1] = math.nan
    found = read(nn.Sequential(nn.ReLU()), x)
    assert np.isnan(found["0", "deactivation_rate"]).tolist() == [False, True, False]
    assert np.isnan(found["0", "offset"]).tolist() == [False, True, False]
    assert math.isnan(found["0", "margin"])
    assert found["0", "dead"] == 2


def test_the_error_of_the_margin_is_the_delta_method_s():
    """For a Gaussian, Var s = (1 + s^2/2)/n; sample moments of n = 20 000 know it to 3 %."""
    model, n = nn.Sequential(nn.ReLU()), 20_000
    risk = EmpiricalRisk(model, lambda outputs, targets: outputs.mean(), (normal(n, 1) - 2, None))
    readings = Elimination()(Step(0, risk, Activations(risk), Previous(), None, torch.Generator()))
    margin = next(r for r in readings if r.name == "margin")
    assert margin.error == pytest.approx(math.sqrt(3 / n), rel=0.03)


def test_layer_norm_on_two_rows_kills_a_channel_though_every_row_is_normalized():
    """T2: rows (3, 1), (5, 1) become (1, -1), (1, -1)."""
    rows = torch.tensor([[3.0, 1.0], [5.0, 1.0]], dtype=torch.float64)
    found = read(nn.Sequential(nn.LayerNorm(2, eps=0.0), nn.ReLU()), rows)
    assert found["1", "offset"].tolist() == [math.inf, -math.inf]
    assert found["1", "deactivation_rate"].tolist() == [0, 1]
    assert found["1", "dead"] == 1
    assert (found["0", "statdiff_mean"], found["0", "statdiff_std"]) == (1, 1)


@pytest.mark.parametrize("eps", [TINY, 0.5])
def test_in_train_mode_batch_norm_differs_from_zero_and_one_by_eps_alone(eps):
    x = normal(20, 5, 3, 3)
    norm = batch_norm(5, eps)
    found = read(nn.Sequential(norm, nn.ReLU()), x)
    variance = x.var((0, 2, 3), correction=0)
    expected = (1 - (variance / (variance + eps)).sqrt()).mean().item()
    assert found["0", "statdiff_mean"] == pytest.approx(0, abs=10 * EPS)
    assert found["0", "statdiff_std"] == pytest.approx(expected, rel=1e-12, abs=100 * EPS)
    assert norm.num_batches_tracked == 0


def test_in_eval_mode_batch_norm_differs_by_how_far_its_running_statistics_are_off():
    x = normal(50, 3, 2, 2)
    norm = nn.BatchNorm2d(3, eps=0.0).double()
    norm.running_mean, norm.running_var = x.mean((0, 2, 3)) - 0.5, x.var((0, 2, 3), correction=0) / 4
    found = read(nn.Sequential(norm, nn.ReLU()), x, mode="eval")
    expected = (0.5 / norm.running_var.sqrt()).mean().item()
    assert found["0", "statdiff_mean"] == pytest.approx(expected, rel=1e-12)
    assert found["0", "statdiff_std"] == pytest.approx(1.0, rel=1e-12)


def test_group_norm_keeps_the_identity_of_its_groups():
    """T1: mean_c mu_c = 0 and mean_c(sigma_c^2 + mu_c^2) = 1; of mirrored channels each has the same mu^2, sigma."""
    half = normal(1, 1, 40).expand(9, 1, 40) + 3
    found = read(nn.Sequential(nn.GroupNorm(1, 2, eps=0.0), nn.ReLU()), torch.cat([half, -half], dim=1))
    mean, std = found["0", "statdiff_mean"], 1 - found["0", "statdiff_std"]
    assert mean > 0.9
    assert mean**2 + std**2 == pytest.approx(1, abs=100 * EPS)


NORMS = {
    "batch": (nn.BatchNorm2d(6), lambda x: functional.batch_norm(x, None, None, training=True)),
    "group": (nn.GroupNorm(3, 6), lambda x: functional.group_norm(x, 3)),
    "instance": (nn.InstanceNorm2d(6, affine=True), functional.instance_norm),
    "bare": (nn.GroupNorm(2, 6, affine=False), lambda x: functional.group_norm(x, 2)),
    "layer": (nn.LayerNorm((6, 4, 4)), lambda x: functional.layer_norm(x, (6, 4, 4))),
    "tokens": (nn.LayerNorm(4), lambda x: functional.layer_norm(x, (4,))),
    "rms": (nn.RMSNorm(4, eps=1e-5), lambda x: functional.rms_norm(x, (4,), eps=1e-5)),
}


@pytest.mark.parametrize("name", NORMS)
def test_statdiff_is_that_of_the_output_without_its_affine_map(name):
    norm, plain = NORMS[name]
    for seed, p in enumerate(norm.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
    x = normal(12, 6, 4, 4) * torch.linspace(1, 3, 6, dtype=torch.float64).view(6, 1, 1) + 1
    found = read(nn.Sequential(norm, nn.ReLU()), x)
    y = plain(x).numpy()
    pooled = (0, 1, 2) if name in ("tokens", "rms") else (0, 2, 3)
    assert_close(found["0", "statdiff_mean"], np.abs(y.mean(pooled)).mean(), rtol=1e-11, atol=20 * EPS)
    assert_close(found["0", "statdiff_std"], np.abs(y.std(pooled) - 1).mean(), rtol=1e-11, atol=20 * EPS)


def test_batch_channel_norm_is_measured_before_its_last_affine_map_and_behind_its_first():
    """With the first map taken out, or the last one left in, it would be another tensor."""
    norm, x = BatchChannelNorm(6, groups=2).double(), normal(8, 6, 3, 3)
    for seed, parameter in enumerate(norm.parameters()):
        nn.init.normal_(parameter, 1.0, generator=torch.Generator().manual_seed(seed))
    found = read(nn.Sequential(norm, nn.ReLU()), x)
    inner = functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=1e-5)
    y = functional.group_norm(inner, 2, eps=1e-5).detach()
    assert_close(found["0", "statdiff_mean"], y.mean((0, 2, 3)).abs().mean().item(), rtol=1e-12, atol=0)
    off = (y.std((0, 2, 3), correction=0) - 1).abs().mean().item()
    assert_close(found["0", "statdiff_std"], off, rtol=1e-12, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_in_a_group_the_means_add_to_nothing_and_the_second_moments_to_one(groups):
    """T1: mean_c mu_c = 0 and mean_c (sigma_c^2 + mu_c^2) = 1, for any data; so StatDiff is at most sqrt(C_g - 1)."""
    norm = nn.GroupNorm(groups, 8, eps=0.0)
    found = read(nn.Sequential(norm, nn.ReLU()), normal(5, 8, 3, 3).exp() * torch.arange(8).view(-1, 1, 1))
    mean, std = (found["1", name].reshape(groups, -1) for name in ("mean", "std"))
    np.testing.assert_allclose(mean.mean(1), 0, atol=100 * EPS)
    np.testing.assert_allclose((mean**2 + std**2).mean(1), 1, rtol=100 * EPS)
    assert found["0", "statdiff_mean"] <= math.sqrt(8 / groups - 1)


def test_batch_channel_norm_lies_between_batch_norm_and_group_norm():
    """With its first affine map at random: what it adds to the spread of the channels, the group keeps."""
    x = normal(16, 8, 4, 4) * torch.arange(1, 9).view(-1, 1, 1) + torch.arange(8).view(-1, 1, 1)
    between = BatchChannelNorm(8, groups=2)
    nn.init.normal_(between.bias, 0, 0.1, generator=torch.Generator().manual_seed(0))
    layers = (batch_norm(8), between, nn.GroupNorm(2, 8, eps=0.0))
    found = [read(nn.Sequential(norm, nn.ReLU()), x)["0", "statdiff_mean"] for norm in layers]
    assert found[0] < 1e-14 < 0.01 < found[1] < found[2] / 2


def test_the_weights_of_the_units_are_read_where_the_graph_shows_whose_they_are():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Dropout(0.0), nn.Linear(2, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0, 0.0], [0.0, -2.0, 0.0]]))
        model[4].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 5.0], [0.0, 12.0]]))
    found = read(model, normal(10, 3))
    assert found["2", "incoming_norm"] == pytest.approx([5, 2])
    assert found["2", "outgoing_norm"] == pytest.approx([3, 13])
    assert found["2", "overlap"] == pytest.approx([0.8, 0.8])
    assert found["2", "overlap_mean"] == pytest.approx(np.corrcoef([3, 4, 0], [0, -2, 0])[0, 1])


def test_of_a_residual_network_nothing_is_said_about_who_reads_its_sums():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.act(self.first(x))
            return self.last(h) + h

    names = {name for _, name in read(Residual(), normal(10, 3))}
    assert "incoming_norm" in names
    assert "outgoing_norm" not in names


class Functional(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 3, 1), norm

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))


def test_where_relu_is_a_function_the_outputs_of_normalizations_are_measured():
    model = Functional(nn.BatchNorm1d(3, eps=TINY))
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    found = read(model, normal(10, 1, 4))
    np.testing.assert_allclose(found["norm", "offset"], [-1, 0.5, 2], rtol=1e3 * EPS)
    assert {layer for layer, _ in found} == {"norm"}


def test_named_layers_are_measured_at_their_output():
    x, model = normal(10, 1, 4), Functional(nn.Identity())
    found = read(model, x, layers="conv")
    z = model.conv(x).detach()
    np.testing.assert_allclose(found["conv", "deactivation_rate"], (z <= 0).double().mean((0, 2)), rtol=EPS)


def test_without_any_module_to_measure_the_user_is_told_what_to_name():
    with pytest.raises(
        ValueError, match=r"elimination needs rectifiers, .* name the layers whose output .*layers='conv\*'"
    ):
        read(Functional(nn.Identity()), normal(3, 1, 4))
