"""Runs made by hand through the store's writer: a healthy one, a sick one, four to compare, one with hostile names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from normlens.run.reading import Measurement, Reading
from normlens.run.store import Run, open_run
from normlens.run.writer import RunWriter
from support.batch_noise_readings import batch_noise_readings
from support.density import density_readings
from support.drift_readings import distribution_readings
from support.fisher_vector_readings import fisher_vector_readings
from support.gradient_readings import GRADIENT_PROBES
from support.inference_readings import calibration_readings, quantization_readings
from support.mutual_information_readings import mutual_information_readings
from support.representation_readings import REPRESENTATION_PROBES
from support.saturation_readings import saturation_readings
from support.singularity_readings import singularity_readings
from support.system_readings import SYSTEM_PROBES
from support.variance_shift_readings import variance_shift_readings

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "math": "w$_{$",
    "attribute": "\" onload='alert(1)' x=\"",
    "nul": "nul\x00bell\x07end",
    "surrogate": "lone\ud800surrogate",
    "right_to_left": "abc\u202egnp.exe\u2066\u200f",
    "markup": "<b>&amp;</b>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "long": "block." * 1700,  # 10 kB
}


@dataclass(frozen=True)
class Recipe:
    """What a synthetic run shows; every field is what a healthy one has."""

    name: str = "batch_norm, seed 0"
    norm: str = "batch_norm"
    steps: Sequence[int] = (0, 60, 120, 180, 240, 300)
    layers: Sequence[str] = ("block1", "block2", "block3")
    channels: int = 32
    half_life: float = 60.0
    final_loss: float = 0.05
    dead: dict[str, int] = field(default_factory=dict)  # channels dead by the last step, by block
    near_dead: int = 0
    nan_from: int | None = None
    drift: float = 0.5  # of the floor at the last step, times two for every deeper layer
    statdiff: float = 0.0
    sharpness: float = 20.0  # the largest curvature at the last step; the optimizer stands 40
    failed: int = 0
    starved: str | None = None
    closed: bool = True
    seed: int = 0


def loss_at(recipe: Recipe, step: int) -> float:
    loss = recipe.final_loss + (2.302585 - recipe.final_loss) * 0.5 ** (step / recipe.half_life)
    return math.nan if recipe.nan_from is not None and step >= recipe.nan_from else loss


def curve_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    loss = loss_at(recipe, step)
    accuracy = 0.1 if math.isnan(loss) else max(0.1, 1 - 0.39 * loss)
    error = math.sqrt(accuracy * (1 - accuracy) / 256)
    readings = [
        Reading("loss", loss, units="nats", error=0.02 * loss, n=256),
        Reading("accuracy", accuracy, error=error, n=256),
        Reading("gradient_norm", 0.9 * loss, n=256),
    ]
    if step:
        readings += [Reading("batch_loss", 1.1 * loss, n=64), Reading("update_norm", 0.05 * loss)]
    return tuple(readings)


def elimination_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    readings: list[Reading] = []
    for depth, block in enumerate(recipe.layers):
        rng = np.random.default_rng([recipe.seed, depth])
        offset = 0.5 * rng.standard_normal(recipe.channels) - 0.1 * depth
        rate = np.array([0.5 * math.erfc(s / math.sqrt(2)) for s in offset])
        dead = recipe.dead.get(block, 0) if step >= recipe.steps[len(recipe.steps) // 2] else 0
        offset[: dead + recipe.near_dead] = -2.7
        rate[: dead + recipe.near_dead] = 0.995
        offset[:dead], rate[:dead] = -4.0 - 0.3 * np.arange(dead), 1.0
        offset[0] = -math.inf if dead > 2 else offset[0]
        relu = f"{block}.relu"
        std = np.where(np.isinf(offset), 0.0, 0.5 + rng.random(recipe.channels))
        mean = np.where(np.isinf(offset), -1.0, np.nan_to_num(offset, neginf=0) * std)
        readings += [
            Reading("mean", mean, layer=relu, dims=("channel",), n=4096),
            Reading("std", std, layer=relu, dims=("channel",), n=4096),
            Reading("offset", offset, layer=relu, dims=("channel",), n=4096),
            Reading("deactivation_rate", rate, layer=relu, dims=("channel",), n=4096),
            Reading("margin", float(offset.min()), layer=relu, n=4096),
            Reading("dead", float(dead), layer=relu, n=4096),
            Reading("near_dead", float((rate >= 0.99).sum()), layer=relu, n=4096),
            Reading("channels", float(recipe.channels), layer=relu),
            Reading("statdiff_mean", recipe.statdiff * (1 + depth), layer=f"{block}.norm", n=4096),
            Reading("statdiff_std", recipe.statdiff * (1 + depth) / 2, layer=f"{block}.norm", n=4096),
        ]
    return tuple(readings)


def drift_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    readings: list[Reading] = []
    for depth, block in enumerate(recipe.layers[1:]):
        conv, mean = f"{block}.conv", np.full(recipe.channels, 0.001 * step)
        broken = recipe.nan_from is not None and step >= recipe.nan_from
        readings.append(Reading("mean", mean * (math.nan if broken else 1), layer=conv, dims=("channel",), n=4096))
        readings.append(Reading("std", np.ones(recipe.channels), layer=conv, dims=("channel",), n=4096))
        readings += distribution_readings(conv, 1 + depth * step / 300, broken)
        if step == recipe.steps[0]:
            continue
        shift = math.nan if broken else 0.04 * recipe.drift * 2**depth * step / recipe.steps[-1]
        for kind in ("mean_shift", "log_scale", "kl", "w1", "ks"):
            readings.append(Reading(f"{kind}_first", shift, layer=conv, error=0.003, n=4096))
            readings.append(Reading(f"{kind}_previous", shift / 2, layer=conv, error=0.003, n=4096))
            readings.append(Reading(f"{kind}_floor", 0.04, layer=conv, n=4096))
        readings.append(Reading("constant_channels", 0.0, layer=conv))
    return tuple(readings)


def sharpness_at(recipe: Recipe, step: int) -> float:
    rise = (recipe.sharpness - 4) * step / max(recipe.steps[-1], 1)  # a straight line
    return math.nan if math.isnan(loss_at(recipe, step)) else 4 + rise


def spectrum_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    largest = sharpness_at(recipe, step)
    return (
        Reading("top", largest / np.array([1.0, 2.0, 5.0]), dims=("index",), n=256),
        Reading("bottom", largest * np.array([-0.05, -0.01]), dims=("index",), n=256),
        Reading("lambda_max", largest, error=0.001 * largest, n=256),
        Reading("lambda_min", -0.05 * largest, n=256),
        Reading("trace", 3 * largest, error=0.1 * largest, n=256),
        Reading("matvecs", 40.0),
        *(density_readings(largest) if math.isfinite(largest) else ()),
    )


def condition_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    """From the second half on Lanczos reaches no smallest eigenvalue: there is a lower bound alone."""
    exact, kappa = step < recipe.steps[-1] / 2, 50 * sharpness_at(recipe, step)
    found = (Reading("kappa", kappa, n=256), Reading("lambda_min_nonzero", 0.02, n=256)) if exact else ()
    return (
        *found,
        Reading("kappa_lower", kappa if exact else kappa / 2, n=256),
        Reading("lambda_max", sharpness_at(recipe, step), n=256),
        Reading("nullity", 12.0),
        Reading("negative", 3.0),
        Reading("tolerance", 1e-6),
        Reading("floor", 1e-9),
        Reading("tolerance_grid", np.array([1e-8, 1e-6, 1e-4]), dims=("tolerance_grid",)),
        Reading("curve", kappa * np.array([10.0, 1.0 if exact else 0.5, 0.1]), dims=("tolerance_grid",)),
    )


def edge_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    sharpness = sharpness_at(recipe, step)
    return (
        Reading("sharpness", sharpness, error=0.4, n=256),
        Reading("threshold", 40.0),
        Reading("ratio", sharpness / 40, n=256),
    )


def surface_readings(recipe: Recipe, step: int) -> tuple[Reading, ...]:
    """A bowl; its last row was not computed where the loss is not a number at the center."""
    x, y = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7)
    loss = loss_at(recipe, recipe.steps[0]) * 0.1 + recipe.sharpness / 2 * (x[:, None] ** 2 + 0.1 * y**2)
    if math.isnan(loss_at(recipe, step)):
        loss[-1] = math.nan
    return (
        Reading("loss", loss, dims=("x", "y"), units="nats", n=256),
        Reading("x", x, dims=("x",), n=256),
        Reading("y", y, dims=("y",), n=256),
        Reading("center", loss[4, 3], n=256),
        Reading("directions", 0.0),
        Reading("statistics", 2.0),
    )


PROBES = {
    "training_curve": curve_readings,
    "elimination": elimination_readings,
    "activation_drift": drift_readings,
    "hessian_spectrum": spectrum_readings,
    "condition_number": condition_readings,
    "edge_of_stability": edge_readings,
    "loss_surface": surface_readings,
    **SYSTEM_PROBES,
    "singularity": singularity_readings,
    **GRADIENT_PROBES,
    "saturation": saturation_readings,
    "calibration": lambda recipe, step: calibration_readings(1 - loss_at(recipe, step) / 3, recipe.layers),
    "batch_noise": batch_noise_readings,
    "fisher_vector": fisher_vector_readings,
    "mutual_information": mutual_information_readings,
    "variance_shift": variance_shift_readings,
    **REPRESENTATION_PROBES,
    "quantization_error": lambda recipe, step: quantization_readings(1 + recipe.statdiff, recipe.layers),
}


def header_of(recipe: Recipe) -> dict[str, object]:
    blocks = [f"{block}.{part}" for block in recipe.layers for part in ("conv", "norm", "relu")]
    return {
        "normlens": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "numpy": "2.4.6",
        "machine": {"processor": "x86_64", "cores": 2, "device": "cpu"}, "seed": recipe.seed, "name": recipe.name,
        "config": {"data": "digits", "model": "cnn", "norm": recipe.norm, "optimizer": "SGD(lr=0.05, momentum=0.9)",
                   "epochs": 10, "batch_size": 64},
        "probes": {name: {} for name in PROBES}, "schedule": "every(60)", "budget": 0.1, "min_runs": 2,
        "parameters": 12345, "layers": [*blocks, "head"], "started": "2026-11-21T12:00:00+00:00", "first_step": 0,
    }  # fmt: skip


def measure(recipe: Recipe, step: int) -> list[Measurement]:
    elapsed = 0.1 * step
    made = [Measurement(step, "user", readings=(Reading("test_accuracy", 0.97 - loss_at(recipe, step) / 3),))]
    for probe, read in PROBES.items():
        if probe == recipe.starved:
            message = "would have cost 12.3 s; earned 0.4 s"
            made.append(Measurement(step, probe, "starved", message, elapsed=elapsed))
        elif probe == "elimination" and step in recipe.steps[1 : 1 + recipe.failed]:
            made.append(Measurement(step, probe, "failed", "ValueError: no layer matched", elapsed=elapsed))
        else:
            made.append(Measurement(step, probe, "ok", "", "eval", 0.1, elapsed, read(recipe, step)))
    return made


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``make_run(field=…)`` writes the run that a :class:`Recipe` describes and opens it."""
    folder = tmp_path_factory.mktemp("runs")

    def make(file: str | None = None, **fields: object) -> Run:
        recipe = Recipe(**fields)  # type: ignore[arg-type]
        path = folder / (file or f"run{len(list(folder.iterdir()))}")
        with RunWriter(path, header_of(recipe)) as writer:
            for step in recipe.steps:
                writer.write(measure(recipe, step))
            if recipe.closed:
                spent, bare = 0.3 * len(recipe.steps), max(0.1 * recipe.steps[-1], 0.1)
                values = {"bare_seconds": bare, "lens_seconds": spent, "overhead": spent / bare}
                readings = tuple(Reading(name, value) for name, value in values.items())
                writer.write([Measurement(recipe.steps[-1], "lens", "note", elapsed=bare, readings=readings)])
        return open_run(path)

    return make


@pytest.fixture(scope="session")
def write_measurements(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``write_measurements(measurements, header)`` for a run of exactly these records."""
    folder = tmp_path_factory.mktemp("exact")

    def write(measurements: Sequence[Measurement], header: dict[str, object] | None = None) -> Run:
        path: Path = folder / f"run{len(list(folder.iterdir()))}"
        with RunWriter(path, header or {}) as writer:
            writer.write(measurements)
        return open_run(path)

    return write


@pytest.fixture(scope="session")
def healthy_run(make_run: Callable[..., Run]) -> Run:
    return make_run("healthy")


@pytest.fixture(scope="session")
def sick_run(make_run: Callable[..., Run]) -> Run:
    """Dead channels, a loss that becomes NaN, a probe that failed and one that starved; killed before its end."""
    return make_run(
        "sick", name="none, seed 0", norm="none", dead={"block2": 9, "block3": 3}, near_dead=2, nan_from=180,
        failed=2, starved=None, drift=12.0, statdiff=0.8, closed=False, seed=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def four_runs(make_run: Callable[..., Run]) -> dict[str, Run]:
    """Four norms, from good to bad; the last one's drift starved."""
    recipes: list[dict[str, object]] = [
        {"norm": "batch_norm"},
        {"norm": "group_norm", "half_life": 80.0, "final_loss": 0.12, "drift": 2.0, "statdiff": 0.2, "seed": 1,
         "sharpness": 24.0},
        {"norm": "layer_norm", "half_life": 95.0, "final_loss": 0.21, "drift": 4.0, "statdiff": 0.5, "near_dead": 1,
         "sharpness": 30.0},
        {"norm": "none", "half_life": 140.0, "final_loss": 0.6, "dead": {"block2": 9, "block3": 3},
         "starved": "activation_drift", "seed": 3, "sharpness": 44.0},
    ]  # fmt: skip
    return {str(r["norm"]): make_run(f"four_{r['norm']}", name=f"{r['norm']}, seed 0", **r) for r in recipes}


@pytest.fixture(scope="session")
def hostile_names() -> dict[str, str]:
    return HOSTILE


@pytest.fixture(scope="session")
def hostile_runs(make_run: Callable[..., Run]) -> dict[str, Run]:
    """Runs whose own and whose layers' names try to break out of figure and page."""
    layers = tuple(HOSTILE.values())
    return {
        name: make_run(f"hostile_{kind}", name=name, norm=name, layers=layers, channels=4, dead={layers[0]: 2})
        for kind, name in list(HOSTILE.items())[:4]
    }


@pytest.fixture
def empty_run(write_measurements: Callable[..., Run]) -> Run:
    """A run with a header and nothing measured but what the user logged."""
    return write_measurements([Measurement(0, "user", readings=(Reading("epoch", 0.0),))], {"name": "empty"})
