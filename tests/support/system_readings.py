"""What the probes of weights, representations and entropies would have read on a synthetic run."""

from __future__ import annotations

import math
from typing import Any

from normlens.run.reading import Reading


def _broken(recipe: Any, step: int) -> bool:
    return recipe.nan_from is not None and step >= recipe.nan_from


def weight_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Weights grow, so that the effective rate falls; angles fall to their equilibrium; there is none at the start."""
    readings: list[Reading] = []
    lost = math.nan if _broken(recipe, step) else 1.0
    for depth, block in enumerate(recipe.layers):
        layer, norm = f"{block}.conv", lost * (3.0 + 0.5 * depth + 0.01 * step)
        readings += [
            Reading("norm", norm, layer=layer),
            Reading("effective_rate", 0.05 / norm**2, layer=layer),
            Reading("invariance", lost * (1e-7 if recipe.norm == "batch_norm" else 0.1), layer=layer, n=256),
            Reading("effective_gradient", 2.0 / norm, layer=layer, n=256),
            Reading("orthogonal_energy", lost * 0.2 * 0.5 ** (step / 300), layer=layer, n=256),
        ]
        if step:
            angle = lost * 0.0073 * (1 + (0.5 + depth) * 0.5 ** (step / recipe.half_life))
            readings.append(Reading("angle", angle, layer=layer, units="rad"))
            readings.append(Reading("angle_equilibrium", 0.0073, layer=layer, units="rad"))
    return tuple(readings)


def alignment_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Most is reachable by all parameters, less by the last layer."""
    lost = math.nan if _broken(recipe, step) else 1.0
    residual = lost * 0.3 * recipe.final_loss / (1 + step / recipe.half_life)
    return (
        Reading("rows", 320.0, n=32),
        Reading("rank", lost * (320.0 if residual < 0.01 else 300.0), n=32),
        Reading("residual", residual, n=32),
        Reading("smallest_singular", lost * 0.01, n=32),
        Reading("rows_last", 2560.0, n=256),
        Reading("rank_last", lost * 330.0, n=256),
        Reading("residual_last", residual + lost * 0.05, n=256),
        Reading("structure_residual", lost * 1e-16, n=32),
    )


def entropy_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """As unsure as a guess at first, and a tenth of that by its own noise."""
    lost = math.nan if _broken(recipe, step) else 1.0
    entropy = lost * (0.1 + 2.1 * 0.5 ** (step / recipe.half_life))
    return (
        Reading("entropy", entropy, error=0.03 * entropy, units="nats", n=256),
        Reading("mutual_information", 0.1 * entropy, error=0.01 * entropy, units="nats", n=256),
        Reading("largest", math.log(10), units="nats"),
        Reading("draws", 20.0),
    )


def self_normalization_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Normalized layers let nothing through, the head everything; once the loss is lost, only the head is known."""
    lost = math.nan if _broken(recipe, step) else 1.0
    through = 0.9 if recipe.norm == "none" else 1e-4 if recipe.norm == "batch_norm" else 0.02
    readings = [Reading("gain_sensitivity", 1.0, layer="head", n=256)]
    for depth, block in enumerate(recipe.layers):
        readings.append(Reading("gain_sensitivity", lost * through / (1 + depth), layer=f"{block}.conv", n=256))
        readings.append(Reading("unit_spread", lost * 0.2 * (1 + depth), layer=f"{block}.relu", n=4096))
    return tuple(readings)


SYSTEM_PROBES = {
    "weight_dynamics": weight_readings,
    "representation_alignment": alignment_readings,
    "predictive_entropy": entropy_readings,
    "self_normalization": self_normalization_readings,
}
