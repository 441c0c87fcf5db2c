"""What the probes of representations and of the layers' inputs would have read on a synthetic run."""

from __future__ import annotations

import math
from typing import Any

from normlens.run.reading import Reading


def _lost(recipe: Any, step: int, depth: int) -> float:
    """The first layer is known to the end."""
    return math.nan if depth and recipe.nan_from is not None and step >= recipe.nan_from else 1.0


def rank_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Ranks fall with depth, the more so the further the features are from batch norm's."""
    readings: list[Reading] = []
    for depth, block in enumerate(recipe.layers):
        layer = f"{block}.relu"
        centered = _lost(recipe, step, depth) * (1 + 20 / (1 + depth % 3) / (1 + 10 * recipe.statdiff))
        rank = 1 + 0.1 * (centered - 1)
        gap = math.sqrt(1 / rank - 1 / 128) if rank == rank else math.nan
        numbers = {
            "effective_rank": (rank, 0.01 * rank),
            "effective_rank_share": (rank / 32, 0.01 * rank / 32),
            "effective_rank_centered": (centered, 0.05 * centered),
            "orthogonality_gap": (gap, 0.01 * gap),
            "gap_share": (gap / math.sqrt(1 - 1 / 128), 0.01 * gap),
            "soft_rank": (_lost(recipe, step, depth) * 24.0, math.nan),
            "soft_rank_share": (_lost(recipe, step, depth) * 0.75, math.nan),
            "mean_share": (_lost(recipe, step, depth) * 0.9, math.nan),
        }
        readings += [Reading(name, v, error=e, layer=layer, n=128) for name, (v, e) in numbers.items()]
        readings.append(Reading("width", float(recipe.channels), layer=layer))
    return tuple(readings)


def input_condition_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Centering gains a factor of three, normalizing another one."""
    readings: list[Reading] = []
    for depth, block in enumerate(recipe.layers[1:]):
        layer = f"{block}.conv"
        kappa = _lost(recipe, step, depth) * (50.0 + step) * (1 + depth % 3) * (1 + 10 * recipe.statdiff)
        for place, matrix in enumerate(("raw", "centered", "normalized")):
            readings.append(Reading(f"kappa_{matrix}", kappa / 3**place, layer=layer, n=1024))
            readings.append(Reading(f"nullity_{matrix}", _lost(recipe, step, depth) * depth, layer=layer, n=1024))
        readings += [
            Reading("constant", _lost(recipe, step, depth) * 0.0, layer=layer, n=1024),
            Reading("features", 144.0, layer=layer),
            Reading("tolerance", 1e-5, layer=layer),
            Reading("floor", 9.5e-7, layer=layer),
        ]
    return tuple(readings)


REPRESENTATION_PROBES = {
    "rank_collapse": rank_readings,
    "activation_condition": input_condition_readings,
}
