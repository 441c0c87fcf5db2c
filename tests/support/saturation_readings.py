"""What the probe of saturation would have read on a synthetic run, as if its nonlinearities were bounded."""

from __future__ import annotations

from typing import Any

from normlens.run.reading import Reading


def saturation_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """The deeper, the more; more where the statistics are off. What is not finite the probe would have refused."""
    readings = [Reading("layers", float(len(recipe.layers)))]
    for depth, block in enumerate(recipe.layers):
        share = (0.02 + 0.05 * recipe.statdiff) * (1 + depth % 3)
        readings += [
            Reading("saturated", share, layer=f"{block}.relu", error=0.004, n=4096),
            Reading("saturated_units", 0.0, layer=f"{block}.relu", n=4096),
            Reading("channels", float(recipe.channels), layer=f"{block}.relu"),
            Reading("slope", 0.6, layer=f"{block}.relu", n=4096),
        ]
    return tuple(readings)
