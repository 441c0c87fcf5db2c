"""What the probe of mutual information would have read on a synthetic run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normlens.run.reading import Reading

KEEP = 0.9


def mutual_information_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Independent-component layers on the law of keep squared, the less the larger StatDiff is; the last has no space.

    The denominator of one pair is below the level of no dependence. What is not finite the probe would have refused.
    """
    readings = [Reading("layers", float(len(recipe.layers)))]
    for depth, block in enumerate(recipe.layers):
        layer, ratio = f"{block}.norm", KEEP**2 - 0.2 * recipe.statdiff
        before = np.array([0.02, 0.2, 0.4, 0.6]) / (1 + depth)
        made = {"before": before, "after": ratio * before, "pair_ratio": np.where(before > 0.09, ratio, np.nan)}
        made |= {"first_channel": np.arange(4), "second_channel": np.arange(4, 8)}
        made |= {"correlation_before": before, "correlation_after": KEEP * before, "correlation_predicted": before}
        if depth + 1 < len(recipe.layers):
            made |= {"within_before": 0.9 * before, "within_after": 0.9 * ratio * before}
        for name, values in made.items():
            readings.append(Reading(name, values, layer=layer, units="nats", dims=("pair",), n=256))
            if name.endswith(("before", "after")) and not name.startswith("correlation"):
                readings.append(Reading(f"{name}_error", 0.03 + 0 * values, layer=layer, dims=("pair",), n=256))
        kinds = ("", "within_") if depth + 1 < len(recipe.layers) else ("",)
        for kind in kinds:
            readings.append(Reading(f"{kind}ratio", ratio, layer=layer, error=0.02, n=256))
            readings.append(Reading(f"{kind}ratio_predicted", KEEP**2, layer=layer))
        readings += [
            Reading("keep_prob", KEEP, layer=layer),
            Reading("zeros", 0.0, layer=layer, n=256),
            Reading("null", 0.03, layer=layer, units="nats", n=24),
            Reading("untrusted", 0.0, layer=layer),
            Reading("label_before", 0.2, layer=layer, error=0.01, units="nats", n=256),
            Reading("label_after", 0.18, layer=layer, error=0.01, units="nats", n=256),
            Reading("label_ratio", 0.9, layer=layer, error=0.02, n=256),
        ]
        matrix = 0.1 + 0.05 * np.add.outer(np.arange(4.0), np.arange(4.0)) / (1 + depth)
        np.fill_diagonal(matrix, math.inf)
        for name, factor in (("matrix_before", 1.0), ("matrix_after", ratio)):
            dims = ("channel", "other_channel")
            readings.append(Reading(name, factor * matrix, layer=layer, units="nats", dims=dims, n=256))
    return tuple(readings)
