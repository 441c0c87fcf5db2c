"""What the probe fisher_vector would have read on a synthetic run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normlens.run.reading import Reading


def fisher_vector_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """The first layers have modes, and lose them with depth; once the loss is lost, the first alone is known."""
    broken = recipe.nan_from is not None and step >= recipe.nan_from
    readings: list[Reading] = []
    for depth, block in enumerate(recipe.layers):
        norm, channels = f"{block}.norm", recipe.channels
        lost = math.nan if broken and depth else 1.0
        several, mixed = channels // 2 ** (depth + 1 + (step > 0)), channels // 2 ** (depth + 1)
        energy = lost * (0.7 + 0.1 * depth)
        components = np.where(np.arange(channels) < mixed, 2.0, 1.0) * lost
        modes = np.where(np.arange(channels) < several, 2.0, 1.0) * lost
        scalars = {
            "sigma_energy_mean": (energy, 0.05), "channels": (float(channels), math.nan),
            "unknown": (float(channels) if broken and depth else 0.0, math.nan),
            "mixed": (lost * mixed / channels, math.nan),
            "multimodal": (lost * several / channels, math.nan), "separation_median": (lost * 1.9, math.nan),
            "fim_rel_err_mean": (lost * 0.4, 0.01),
        }  # fmt: skip
        if recipe.norm == "batch_norm":
            readings.append(Reading("bn_residual", lost * 4e-15, layer=norm, n=256))
        readings += [Reading(name, v, layer=norm, error=e, n=256) for name, (v, e) in scalars.items()]
        arrays = {"sigma_energy": np.full(channels, energy), "components": components, "modes": modes}
        readings += [Reading(name, v, layer=norm, dims=("channel",), n=4096) for name, v in arrays.items()]
    return tuple(readings)
