"""The drift of whole distributions is SciPy's on the same values, and its floor is what sampling alone shows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from normlens.probes.activation_drift import ActivationDrift
from normlens.run.capture import Activation, choose
from normlens.run.errors import NotRecordedError
from normlens.run.probe import Previous, Readings, Step

EDGES = np.sinh(np.linspace(-1, 1, 129) * np.arcsinh(2.0**11))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(x: Tensor, previous: Previous | Readings | None = None, index: int = 0, **settings: int) -> Readings:
    """What the probe reads of a layer with this input, (samples, positions, channels)."""
    if not isinstance(previous, Previous):
        previous = Previous(stored(previous or {}), previous or {})
    layer = nn.Linear(1, 1)
    found = {"layer": Activation(layer, x, x, x.ndim - 1, x.ndim - 1)}
    step = Step(index, None, lambda layers: choose(found, layers), previous, None, torch.Generator())  # type: ignore[arg-type]
    return {(r.layer, r.name): r for r in ActivationDrift(layers="*", **settings)(step)}


def stored(readings: Readings) -> Readings:
    """What of them is in the file."""
    return {key: reading for key, reading in readings.items() if reading.stored}


def value(readings: Readings, name: str) -> float:
    return float(readings["layer", name].value)


def by_channel(distance, x: Tensor, y: Tensor) -> np.ndarray:
    return np.array([distance(x[..., c].flatten(), y[..., c].flatten()) for c in range(x.shape[-1])])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_w1_and_ks_are_scipy_s_averaged_over_the_channels(dtype):
    x = (normal(300, 4, 5) + 0.3).relu().to(dtype)
    y = (normal(300, 4, 5, seed=1) * 1.5 + torch.linspace(0, 2, 5)).relu().to(dtype)
    found = read(y, read(x))
    std = x.double().std((0, 1), correction=0)
    w1 = by_channel(stats.wasserstein_distance, x.double(), y.double()) / std.numpy()
    ks = by_channel(lambda a, b: stats.ks_2samp(a, b, method="asymp").statistic, x.double(), y.double())
    assert value(found, "w1_first") == pytest.approx(w1.mean(), rel=0.01)
    assert value(found, "ks_first") == pytest.approx(ks.mean(), rel=0.02)


@pytest.mark.parametrize("shift", [0.5, 3.0, 50.0])
def test_w1_of_a_shift_is_the_shift_in_standard_deviations(shift):
    x = normal(500, 2, 4)
    found = read(x + shift * x.std((0, 1), correction=0), read(x))
    assert value(found, "w1_first") == pytest.approx(shift, rel=0.01)


def test_a_change_of_shape_alone_is_seen_by_distributions_and_not_by_moments():
    """Two points at one deviation on either side, with some width, have the mean and the deviation of the Gaussian."""
    x = normal(2000, 1, 2)
    y = x.sign() + 0.1 * normal(2000, 1, 2, seed=1)
    y = (y - y.mean(0)) / y.std(0, correction=0) * x.std(0, correction=0) + x.mean(0)
    found = read(y, read(x))
    assert value(found, "mean_shift_first") < 1e-12 > value(found, "log_scale_first")
    assert value(found, "ks_first") > 3 * value(found, "ks_floor")
    assert value(found, "w1_first") > 3 * value(found, "w1_floor")


def test_first_previous_and_a_named_step_are_three_references():
    x = normal(300, 1, 4)
    std = x.std((0, 1), correction=0)
    first = read(x, since=10)
    second = read(x + std, Previous(stored(first), first), index=10, since=10)
    between = read(x + 2 * std, Previous(stored(first), second), index=15, since=10)
    at = {10: stored(second)}
    last = read(x + 4 * std, Previous(stored(first), between, at.__getitem__), index=20, since=10)
    for reference, moved in (("first", 4), ("since", 3), ("previous", 2)):
        assert value(last, f"w1_{reference}") == pytest.approx(moved, rel=0.01)
        assert value(last, f"mean_shift_{reference}") == pytest.approx(moved, rel=1e-9)
    assert not [name for _, name in second if name.endswith("_since")]


def test_a_named_step_that_was_not_measured_is_an_error():
    def missing(step: int) -> Readings:
        raise NotRecordedError(f"'activation_drift' was not measured at step {step}")

    first = read(normal(30, 1, 2))
    # The step itself asks for nothing.
    read(normal(30, 1, 2), Previous(stored(first), first, missing), index=7, since=7)
    with pytest.raises(NotRecordedError, match="not measured at step 7"):
        read(normal(30, 1, 2), Previous(stored(first), first, missing), index=9, since=7)


def test_channels_own_histograms_are_in_the_file_at_the_references_alone():
    first = read(normal(30, 1, 2), since=10)
    later = {index: read(normal(30, 1, 2), first, index, since=10) for index in (5, 10, 15)}
    assert first["layer", "counts"].stored
    assert {index: found["layer", "counts"].stored for index, found in later.items()} == {5: False, 10: True, 15: False}
    resumed = Previous(stored(first), stored(later[5]))  # the process that measured step 5 is gone
    found = read(normal(30, 1, 2), resumed, index=6)
    assert ("layer", "w1_first") in found
    assert ("layer", "w1_previous") not in found
    assert ("layer", "mean_shift_previous") in found


def test_forty_measurements_of_six_layers_of_64_channels_stay_below_three_megabytes():
    first = read(normal(256, 4, 64).float())
    later = read(normal(256, 4, 64, seed=1).float(), first, index=1)
    once, each = (sum(r.array.nbytes + 200 for r in stored(found).values()) for found in (first, later))
    assert 6 * (once + 39 * each) < 3e6


def test_of_wide_layers_evenly_spaced_channels_are_watched_and_of_many_values_evenly_spaced_ones():
    x = normal(100, 3, 200)
    y = x.clone()
    y[..., 1::4] += 100  # of every fourth channel, from the second on, nothing is watched
    found = read(y, read(x))
    assert found["layer", "counts"].array.shape == (50, 516)
    assert value(found, "w1_first") == 0 < value(found, "mean_shift_first")
    few = read(x, values=60)
    assert few["layer", "counts"].n <= 60
    assert few["layer", "counts"].array.sum() == 50 * few["layer", "counts"].n
    with pytest.raises(ValueError, match=r"values and channels must be 1 at least; got 4096 and 0"):
        read(x, channels=0)


def test_the_distribution_of_all_channels_together_is_numpy_s_histogram_of_them():
    x = (normal(400, 2, 3) * torch.tensor([1.0, 3.0, 0.2])).relu()
    found = read(x)
    edges = value(found, "histogram_scale") * EDGES
    counted = np.histogram(x[x > 0], edges)[0] / x.numel()
    # Each channel's bins are straddled by the common ones: what is moved is a part of one bin on either side.
    np.testing.assert_allclose(found["layer", "histogram"].value.cumsum(), counted.cumsum(), atol=0.01)
    assert value(found, "zeros") == pytest.approx((x == 0).double().mean().item(), abs=1e-12)
    assert found["layer", "histogram"].value.sum() + value(found, "zeros") == pytest.approx(1, abs=1e-6)
    rms = (x.mean((0, 1)).square() + x.var((0, 1), correction=0)).mean().sqrt().item()
    assert value(found, "histogram_scale") == pytest.approx(rms / 2, rel=1e-9)


@pytest.mark.parametrize("rectified", [False, True])
def test_a_fresh_batch_exceeds_the_floor_in_one_case_of_a_hundred_at_most(rectified):
    """One channel whose positions share most of their variance, 200 repetitions: 2 expected, 4.2 more allowed."""
    generator = torch.Generator().manual_seed(3)

    def draw() -> Tensor:
        x = 2 * torch.randn(200, 1, 1, generator=generator) + torch.randn(200, 9, 1, generator=generator)
        return x.relu() if rectified else x

    exceeded = dict.fromkeys(("w1", "ks"), 0)
    for _ in range(200):
        found = read(draw(), read(draw()))
        for kind in exceeded:
            exceeded[kind] += value(found, f"{kind}_first") > value(found, f"{kind}_floor")
    assert max(exceeded.values()) <= 2 + 3 * math.sqrt(2), exceeded


def test_the_errors_cover_the_spread_over_repetitions():
    """Of a shift by one deviation; the spread of 100 is known to 7 %, and the error of a gap is an upper bound."""
    found = [read(1 + normal(200, 1, 1, seed=s), read(normal(200, 1, 1, seed=500 + s))) for s in range(100)]
    for name, least in (("w1_first", 0.8), ("ks_first", 0.5)):
        spread = np.std([value(readings, name) for readings in found])
        error = np.mean([readings["layer", name].error for readings in found])
        assert least * error < spread < 1.3 * error, name


def test_the_floor_of_few_samples_is_wider_by_student_s_tail():
    """Five samples without positions: t / z of four degrees of freedom, Kolmogorov's 99 % point, root of 2/5."""
    found = read(normal(5, 1, 3), read(normal(5, 1, 3)))
    assert value(found, "ks_floor") == pytest.approx(4.6040949 / 2.5758293 * 1.6276236 * math.sqrt(2 / 5), rel=1e-5)
    single = read(normal(1, 1, 3), read(normal(1, 1, 3)))
    assert math.isnan(value(single, "ks_floor"))


def test_a_layer_of_another_width_or_without_a_histogram_has_no_drift_of_distributions():
    first = read(normal(30, 1, 3))
    assert ("layer", "w1_first") not in read(normal(30, 1, 4), first)
    old = {key: replace(r) for key, r in first.items() if r.name in ("mean", "std")}  # a run of an earlier version
    found = read(normal(30, 1, 3), old)
    assert ("layer", "mean_shift_first") in found
    assert ("layer", "w1_first") not in found
