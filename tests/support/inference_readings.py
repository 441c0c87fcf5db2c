"""What the probes of inference would have read on a synthetic run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normlens.run.reading import Reading


def calibration_readings(accuracy: float, layers: Sequence[str]) -> tuple[Reading, ...]:
    """Noise takes half of the accuracy and doubles the calibration error; calibration gives most of it back."""
    readings: list[Reading] = []
    for state, share, off in (("clean", 1.0, 0.02), ("noisy", 0.5, 0.30), ("calibrated", 0.9, 0.07)):
        value = share * accuracy
        error = math.sqrt(max(value * (1 - value), 0) / 256)
        readings.append(Reading(f"accuracy_{state}", value, error=error, n=256))
        readings.append(Reading(f"ece_{state}", off * accuracy, error=0.01, n=256))
        for depth, layer in enumerate(layers):
            shift = 0.0 if state == "calibrated" else off * (1 + depth)
            readings.append(Reading(f"mean_shift_{state}", shift, layer=f"{layer}.norm", n=256))
            readings.append(Reading(f"log_scale_{state}", shift / 2, layer=f"{layer}.norm", n=256))
    return tuple(readings)


def quantization_readings(scale: float, layers: Sequence[str]) -> tuple[Reading, ...]:
    """Errors that grow with depth, in LSB; the probe refuses what is not finite."""
    readings = [Reading("layers", float(len(layers)))]
    for depth, layer in enumerate(layers):
        rms = 0.3 * scale * (1 + 0.1 * depth)
        readings += [
            Reading("rms", rms, layer=f"{layer}.norm", units="LSB", n=256),
            Reading("max", 2.5 * rms, layer=f"{layer}.norm", units="LSB", n=256),
            Reading("channel_rms", np.full(4, rms), layer=f"{layer}.norm", units="LSB", dims=("channel",), n=256),
            Reading("shift", 12.0 + depth, layer=f"{layer}.norm"),
            Reading("inexact", 0.0, layer=f"{layer}.norm"),
        ]
    return tuple(readings)
