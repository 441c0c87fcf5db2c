"""What the probe of singularities would have read on a synthetic run."""

from __future__ import annotations

from typing import Any

from normlens.run.reading import Reading

INCOMING, OUTGOING = 10, 9


def singularity_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Dead channels make the layer singular; the last layer has too few samples, and no prediction for group norm."""
    readings = [Reading("layers", float(len(recipe.layers))), Reading("too_large", 1.0), Reading("tolerance", 1e-10)]
    late = step >= recipe.steps[len(recipe.steps) // 2]
    for depth, block in enumerate(recipe.layers):
        layer, units = f"{block}.relu", min(12, recipe.channels)
        parameters = units * (INCOMING + OUTGOING)
        dead = min(units, recipe.dead.get(block, 0)) if late else 0
        forced = 40 if depth == len(recipe.layers) - 1 else 0
        regular = max(units, forced)
        predicted = max(forced, units + dead * (INCOMING + OUTGOING - 1))
        values = {
            "nullity": predicted + depth, "rank_bound": parameters - forced, "forced": forced, "units": units,
            "parameters": parameters, "channels": recipe.channels, "smallest": 1e-7, "regular": regular, "dead": dead,
            "predicted": predicted, "outgoing": 0, "incoming": 0, "overlapping": 0, "seldom": 0,
        }  # fmt: skip
        unknown = ("predicted", "regular", "dead", "outgoing", "incoming", "overlapping", "seldom")
        kept = [name for name in values if recipe.norm != "group_norm" or name not in unknown]
        readings += [Reading(name, float(values[name]), layer=layer, n=128) for name in kept]
    return tuple(readings)
