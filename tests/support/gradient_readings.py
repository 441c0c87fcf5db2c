"""What the probes of gradients would have read on a synthetic run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normlens.run.reading import Reading

GROWTH = math.pi / (math.pi - 1)


def _broken(recipe: Any, step: int) -> float:
    return math.nan if recipe.nan_from is not None and step >= recipe.nan_from else 1.0


def predictiveness_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """A quadratic of one direction: of curvature half the sharpness, at a tenth of the edge's rate."""
    multiples = np.array([0.5, 1.0, 2.0, 4.0])
    fade = _broken(recipe, step) * (recipe.final_loss + 0.5 ** (step / recipe.half_life))
    curvature, norm = recipe.sharpness / 2, fade
    changes = multiples * 0.005 * curvature * norm
    losses = fade - norm**2 * 0.05 * multiples * (1 - 0.0025 * curvature * multiples)
    readings = [Reading("loss", fade, n=256), Reading("rate", 0.05), Reading("gradient_norm", norm, n=256)]
    for name, values in (("loss", losses), ("change", changes)):
        readings.append(Reading(f"{name}_at", values, dims=("multiple",), n=256))
        readings.append(Reading(f"{name}_min", float(values.min()), n=256))
        readings.append(Reading(f"{name}_max", float(values.max()), n=256))
    readings.append(Reading("multiple", multiples, dims=("multiple",)))
    readings.append(Reading("relative_change", float(changes.max() / norm), n=256))
    readings.append(Reading("smoothness", curvature * _broken(recipe, step), n=256))
    return tuple(readings)


def covariate_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """The shift grows with depth and fades; the lens was opened on a run that had begun, so that step 0 has one."""
    fade = _broken(recipe, step) * 0.5 ** (step / recipe.half_life)
    readings = [Reading("layers", float(len(recipe.layers)))]
    for depth, block in enumerate(recipe.layers):
        layer, angle = f"{block}.conv", 0.2 * (1 + depth) * (0.3 + fade)
        readings += [
            Reading("shift", 0.01 * (1 + depth) * fade, layer=layer, n=256),
            Reading("cosine", math.cos(angle), layer=layer, n=256),
            Reading("gradient_norm", 0.1 * fade, layer=layer, n=256),
        ]
    return tuple(readings)


def flow_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Before training it grows by about pi/(pi-1) with batch norm, and fades without; afterwards it does neither."""
    first = step == recipe.steps[0]
    growth = 1.0 if not first else 1.45 if recipe.norm == "batch_norm" else 0.3 + 30 / recipe.half_life
    readings = []
    for depth, block in enumerate(recipe.layers):
        energy = _broken(recipe, step) * (0.1 + 0.2 * recipe.final_loss) * growth ** (len(recipe.layers) - depth)
        readings.append(Reading("energy", energy, error=0.05 * energy, layer=f"{block}.conv", n=256))
    readings += [Reading("growth", growth * _broken(recipe, step), error=0.01, n=256), Reading("fitted", 3.0)]
    readings.append(Reading("chain", 1.0))
    if first and recipe.norm == "batch_norm":
        readings.append(Reading("predicted", GROWTH))
    return tuple(readings)


def cancellation_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """More cancels near the input, where there are more places; a head has none, and is known to the end."""
    lost = _broken(recipe, step)
    readings = [Reading("cancellation", 3.0, error=0.2, layer="head", n=256)]
    for depth, block in enumerate(recipe.layers):
        layer = f"{block}.conv"
        for name, value in (("cancellation", 40.0), ("within_samples", 3.0), ("across_samples", 6.0)):
            size = lost * (1 + value / (1 + depth) * recipe.half_life / 60)
            readings.append(Reading(name, size, error=0.05 * size, layer=layer, n=256))
        readings.append(Reading("absolute", 0.3 * lost, error=0.01, layer=layer, n=256))
    return tuple(readings)


GRADIENT_PROBES = {
    "gradient_predictiveness": predictiveness_readings,
    "covariate_shift": covariate_readings,
    "gradient_flow": flow_readings,
    "cancellation": cancellation_readings,
}
