"""What the probe of the variance shift would have read on a synthetic run."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlens.run.reading import Reading


def variance_shift_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """A dropout before every norm but the first; the running variances begin at 1 and come to fit the training.

    What is not finite the probe would have refused.
    """
    readings = [Reading("layers", float(len(recipe.layers))), Reading("dropouts", float(len(recipe.layers) - 1))]
    for depth, block in enumerate(recipe.layers):
        layer, shift = f"{block}.norm", 1 + (0.1 + 0.02 * recipe.statdiff) * depth
        running = 1 + 0.5 ** (step / 20)
        readings += [
            Reading("dropouts_before", float(depth), layer=layer),
            Reading("shift", shift, layer=layer, error=0.01, n=256),
            Reading("train_to_running", running, layer=layer, error=0.01, n=256),
            Reading("eval_to_running", running / shift, layer=layer, error=0.01, n=256),
            Reading("channel_shift", shift * np.ones(4), layer=layer, dims=("channel",), n=256),
        ]
        if depth:
            readings.append(Reading("shift_predicted", 1 + 0.1 * depth, layer=layer, n=256))
    return tuple(readings)
