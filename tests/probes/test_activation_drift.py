"""Drift is the number that was put in, and its floor is what sampling alone shows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from normlens.information.moments import Moments
from normlens.probes.activation_drift import ActivationDrift, _drift, _floors, _state
from normlens.risk import EmpiricalRisk
from normlens.run.capture import Activation, choose
from normlens.run.measure import Activations
from normlens.run.probe import Previous, Readings, Step
from normlens.run.reading import Reading

KINDS = ("mean_shift", "log_scale", "kl")
SHAPES = ("w1", "ks")
STATE = {"mean", "std", "histogram", "histogram_scale", "zeros", "nonfinite", "counts", "range"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_of(inputs: Mapping[str, Tensor], previous: Previous) -> Step:
    """A step whose layers have these inputs, (samples, positions, channels)."""
    layer = nn.Linear(1, 1)
    found = {name: Activation(layer, x, x, x.ndim - 1, x.ndim - 1) for name, x in inputs.items()}
    return Step(0, None, lambda layers: choose(found, layers), previous, None, torch.Generator())  # type: ignore[arg-type]


def read(
    inputs: Mapping[str, Tensor] | Tensor, first: Readings | None = None, last: Readings | None = None
) -> Readings:
    inputs = {"layer": inputs} if isinstance(inputs, Tensor) else inputs
    step = step_of(inputs, Previous(first or {}, last or first or {}))
    return {(r.layer, r.name): r for r in ActivationDrift(layers="*")(step)}


def read_moments(x: Tensor, first: Readings | None = None) -> Readings:
    """What rests on the moments alone, at a tenth of the time: for repetitions."""
    moments = Moments.of(x)
    found = [*_state("layer", moments), *_floors("layer", moments, len(x))]
    found += _drift("layer", moments, first, "first") if first else []
    return {(r.layer, r.name): r for r in found}


def value(readings: Readings, name: str, layer: str = "layer") -> float:
    return float(readings[layer, name].value)


def test_kl_is_the_divergence_of_the_gaussian_now_from_the_gaussian_then():
    then = normal(40, 3, 6) * torch.linspace(0.1, 9, 6) + torch.linspace(-5, 5, 6)
    now = normal(40, 3, 6, seed=1) * torch.linspace(8, 0.3, 6) + 1
    fits = [
        Normal(torch.from_numpy(x.mean((0, 1))), torch.from_numpy(x.std((0, 1)))) for x in (now.numpy(), then.numpy())
    ]
    expected = kl_divergence(*fits).mean().item()
    assert value(read(now, read(then)), "kl_first") == pytest.approx(expected, rel=1e-12)


def test_where_nothing_moved_the_drift_is_exactly_zero():
    x = normal(20, 4, 5).float()
    first = read(x)
    again = read(x.clone(), first)
    for kind in (*KINDS, *SHAPES):
        assert value(again, f"{kind}_first") == value(again, f"{kind}_previous") == 0


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (3.0, 1.0), (-0.5, 1.0), (0.0, math.e), (2.0, 0.1)])
def test_a_known_shift_and_scale_give_the_known_numbers(shift, scale):
    """Mean moved by ``shift`` standard deviations in half of the channels, down in the others; scale by a factor."""
    x = normal(30, 2, 4)
    mean, std = x.mean((0, 1)), x.std((0, 1), correction=0)
    sign = torch.tensor([1, -1, 1, -1])
    found = read(mean + (x - mean) * scale + sign * shift * std, read(x))
    kl = (scale**2 + shift**2 - 1) / 2 - math.log(scale)
    for kind, expected in zip(KINDS, (abs(shift), abs(math.log(scale)), kl), strict=True):
        assert value(found, f"{kind}_first") == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_first_and_previous_are_two_references():
    x = normal(30, 2, 4)
    std = x.std((0, 1), correction=0)
    first = read(x)
    second = read(x + 1 * std, first)
    third = read(x + 3 * std, first, second)
    assert value(third, "mean_shift_first") == pytest.approx(3, rel=1e-12)
    assert value(third, "mean_shift_previous") == pytest.approx(2, rel=1e-12)


def test_the_state_is_recorded_per_channel_and_the_first_measurement_has_no_drift():
    x = normal(30, 2, 4)
    first = read(x)
    assert {name for _, name in first} == STATE
    np.testing.assert_allclose(first["layer", "mean"].value, x.numpy().mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(first["layer", "std"].value, x.numpy().std((0, 1)), rtol=1e-12)
    assert {first["layer", name].dims for name in ("mean", "std")} == {("channel",)}
    assert {r.n for r in first.values()} == {60}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_that_were_constant_are_counted_and_left_out(dtype):
    x = normal(30, 2, 4).to(dtype)
    x[..., 1], x[..., 3] = 0.1, 0.0
    moved = x + x.double().std((0, 1), correction=0).to(dtype)
    moved[..., 1] = normal(30, 2, seed=1)
    found = read(moved, read(x))
    assert value(found, "constant_channels") == 2
    assert value(found, "mean_shift_first") == pytest.approx(1, rel=8 * torch.finfo(dtype).eps)


def test_a_layer_of_constants_has_no_drift_to_speak_of():
    found = read(normal(9, 1, 3), read(torch.full((9, 1, 3), 0.1)))
    assert value(found, "constant_channels") == 3
    assert all(math.isnan(value(found, f"{kind}_first")) for kind in (*KINDS, *SHAPES))


def test_a_channel_that_becomes_constant_is_infinitely_far():
    x = normal(30, 2, 3)
    now = x.clone()
    now[..., 1] = x[..., 1].mean()
    found = read(now, read(x))
    assert value(found, "log_scale_first") == value(found, "kl_first") == math.inf
    assert value(found, "mean_shift_first") == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when", ["now", "then"])
def test_a_channel_that_is_not_finite_shows_and_counts_as_no_constant(bad, when):
    broken = normal(10, 2, 3)
    broken[4, 1, 2] = bad
    pair = (broken, normal(10, 2, 3)) if when == "now" else (normal(10, 2, 3), broken)
    found = read(pair[0], read(pair[1]))
    assert not any(math.isfinite(value(found, f"{kind}_first")) for kind in (*KINDS, *SHAPES))
    assert value(found, "constant_channels") == 0
    if when == "now":
        assert not any(math.isfinite(value(found, f"{kind}_floor")) for kind in (*KINDS, *SHAPES))
        assert value(found, "nonfinite") == pytest.approx(1 / 60)


@pytest.mark.parametrize("factor", [1e200, 1e307])
def test_activations_that_overflow_are_recorded_and_raise_no_warning(factor):
    x = normal(10, 2, 3)
    for now, then in ((x * factor, x), (x, x * factor), (x * factor, x * factor)):
        assert not math.isfinite(value(read(now, read(then)), "kl_first"))


def test_a_layer_without_a_reference_or_of_another_width_has_no_drift():
    first = read({"old": normal(5, 1, 3), "wider": normal(5, 1, 3)})
    found = read({"new": normal(5, 1, 3), "wider": normal(5, 1, 4)}, first)
    assert not [name for _, name in found if name.endswith(("_first", "_previous"))]
    assert ("new", "mean") in found


def test_the_errors_are_those_of_two_independent_batches():
    """The spread of a channel's shift over repetitions, each with one reference: sqrt(2) of one mean's error."""
    shifts, errors = [], []
    for seed in range(400):
        found = read_moments(normal(50, 1, 1, seed=seed), read_moments(normal(50, 1, 1, seed=1000 + seed)))
        shifts.append(value(found, "mean_shift_first"))
        errors.append(found["layer", "mean_shift_first"].error)
    assert_close(np.mean(errors), np.sqrt(np.mean(np.square(shifts))), rtol=4 / math.sqrt(2 * 400), atol=0)


CASES = {  # samples, positions, channels, whether the channels move together, whether they are rectified
    "one_channel": (400, 1, 1, False, False),
    "correlated_pixels": (400, 9, 2, False, False),
    "rectified_correlated_pixels": (1200, 4, 1, False, True),
    "rectified_channels_moving_together": (1200, 2, 3, True, True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fresh_batch_exceeds_the_floor_in_one_case_of_a_hundred_at_most(case):
    samples, positions, channels, together, rectified = case
    trials = 2500
    generator = torch.Generator().manual_seed(11)

    def draw() -> Tensor:
        common = torch.randn(samples, 1, 1 if together else channels, generator=generator)
        own = torch.randn(samples, positions, 1 if together else channels, generator=generator)
        x = (2 * common + own).expand(samples, positions, channels)
        return x.relu() if rectified else x

    exceeded = dict.fromkeys(KINDS, 0)
    for _ in range(trials):
        found = read_moments(draw(), read_moments(draw()))
        for kind in KINDS:
            exceeded[kind] += value(found, f"{kind}_first") > value(found, f"{kind}_floor")
    allowed = trials * (0.01 + 3 * math.sqrt(0.01 * 0.99 / trials))
    assert all(count <= allowed for count in exceeded.values()), exceeded


def test_the_floor_of_one_gaussian_channel_is_the_normal_quantile():
    found = read(normal(100_000, 1, 1), read(normal(100_000, 1, 1, seed=1)))
    z = 2.5758293  # two-sided 99 %
    assert value(found, "mean_shift_floor") == pytest.approx(z * math.sqrt(2 / 100_000), rel=0.01)
    assert value(found, "log_scale_floor") == pytest.approx(z * math.sqrt(1 / 100_000), rel=0.02)
    assert value(found, "kl_floor") == pytest.approx(z**2 * 2 / 100_000, rel=0.02)


def test_the_floor_of_few_samples_is_student_s_quantile_of_their_number_and_not_of_the_pixels():
    x = normal(5, 3, 1)
    error = x.numpy().mean(1).std(0, ddof=1).item() / math.sqrt(5)
    t = 4.6040949  # two-sided 99 % of four degrees of freedom
    floor = t * math.sqrt(2) * error / x.numpy().std()
    assert value(read(x, read(x)), "mean_shift_floor") == pytest.approx(floor, rel=1e-7)


def measure(model: nn.Module, x: Tensor, probe: ActivationDrift, first: Readings | None = None) -> list[Reading]:
    risk = EmpiricalRisk(model, lambda outputs, targets: outputs.mean(), (x, None))
    previous = Previous(first or {}, first or {})
    return list(probe(Step(0, risk, Activations(risk), previous, None, torch.Generator())))


def test_every_linear_and_convolution_layer_but_the_first_is_measured_at_its_input():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)
    ).double()
    x = normal(6, 1, 6, 6)
    found = {(r.layer, r.name): r.value for r in measure(model, x, ActivationDrift())}
    assert [layer for layer, name in found if name == "mean"] == ["3", "5"]
    np.testing.assert_allclose(found["3", "mean"], model[:3](x).detach().mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found["5", "std"], model[:5](x).detach().std(0, correction=0), rtol=1e-12)


def test_named_layers_are_measured_instead_of_the_default_ones():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    assert {r.layer for r in measure(model, normal(5, 3), ActivationDrift(layers="0"))} == {"0"}
    with pytest.raises(ValueError, match=r"layers must match called modules; 'conv\*' matches none of"):
        measure(model, normal(5, 3), ActivationDrift(layers="conv*"))


class Embedded(nn.Module):
    """A model whose first linear layer does not see the data."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x.long()))


def test_a_linear_layer_behind_another_kind_of_layer_is_measured_too():
    found = {
        (r.layer, r.name): r.value
        for r in measure(Embedded().double(), torch.arange(15).view(3, 5) % 5, ActivationDrift())
    }
    assert set(found) == {("head", name) for name in STATE}


def test_where_the_data_are_all_that_layers_see_the_user_is_told_what_to_name():
    with pytest.raises(ValueError, match=r"behind another layer; this model has none: name .*layers='head'"):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)).double(), normal(5, 3), ActivationDrift())
