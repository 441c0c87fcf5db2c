"""What the probe of batch statistics would have read on a synthetic run."""

from __future__ import annotations

import math
from typing import Any

from normlens.run.reading import Reading


def batch_noise_readings(recipe: Any, step: int) -> tuple[Reading, ...]:
    """Of 4096 values fewer count with depth; running statistics match but for ``statdiff``; the first layer stays."""
    broken = recipe.nan_from is not None and step >= recipe.nan_from
    loss = (math.nan if broken else 1.0) * recipe.final_loss
    readings = [
        Reading("layers", float(len(recipe.layers))),
        Reading("training_batch", 64.0),
        Reading("cut", 32.0),
        Reading("loss_train", loss, error=0.1 * loss, n=256),
        Reading("loss_eval", loss * (1 + recipe.statdiff), error=0.1 * loss, n=256),
        Reading("loss_gap", loss * recipe.statdiff, error=0.05 * loss, n=256),
    ]
    for depth, block in enumerate(recipe.layers):
        lost = math.nan if broken and depth else 1.0
        layer, noise = f"{block}.norm", lost * 4.0 ** (1 + depth % 3) * (1 + recipe.statdiff)
        off = noise / 4096
        gap = lost * (0.01 + 0.22 * recipe.statdiff)
        readings += [
            Reading("mean_noise", noise, error=0.1 * noise, layer=layer, n=16384),
            Reading("std_noise", 0.8 * noise, error=0.1 * noise, layer=layer, n=16384),
            Reading("excess_kurtosis", lost * 0.3, layer=layer, n=16384),
            Reading("batch_size", 64.0, layer=layer),
            Reading("values_per_channel", 4096.0, layer=layer),
            Reading("effective_values", 1 / off, error=0.1 / off, layer=layer, n=16384),
            Reading("statistic_error", math.sqrt(off), error=0.05 * math.sqrt(off), layer=layer, n=16384),
            Reading("batch_error", off, error=0.1 * off, layer=layer, n=16384),
            Reading("running_mean_gap", gap, error=0.006, layer=layer, n=16384),
            Reading("running_log_variance_gap", 2 * gap, error=0.012, layer=layer, n=16384),
            Reading("running_mean_gap_floor", 0.01, layer=layer, n=16384),
            Reading("running_log_variance_gap_floor", 0.02, layer=layer, n=16384),
            Reading("running_gap_floor", 0.02, layer=layer, n=16384),
            Reading("initial_share", 0.0 if step > 40 else 0.9**step, layer=layer),
            Reading("running_error", gap**2, layer=layer, n=16384),
            Reading("filtered_error", off * gap**2 / (off + gap**2), layer=layer, n=16384),
            Reading("best_prior_weight", off / (off + gap**2), layer=layer, n=16384),
        ]
    return tuple(readings)
