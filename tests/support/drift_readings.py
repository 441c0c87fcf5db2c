"""The distribution that the drift probe reads: a rectified Gaussian of known width, in 128 bins."""

from __future__ import annotations

import numpy as np
from scipy import stats

from normlens.run.reading import Reading

EDGES = 0.5 * np.sinh(np.linspace(-1, 1, 129) * np.arcsinh(2.0**11))


def distribution_readings(layer: str, width: float, broken: bool = False) -> list[Reading]:
    """``width`` times a normal variable, of which what is below zero is zero; nothing finite if it is ``broken``."""
    shares = np.where(EDGES[1:] > 1e-9, np.diff(stats.norm.cdf(EDGES / width)), 0.0) * (not broken)
    found = {"histogram_scale": 0.5, "zeros": 0.5 * (not broken), "nonfinite": float(broken)}
    return [
        Reading("histogram", shares, layer=layer, dims=("bin",), n=4096),
        *(Reading(name, value, layer=layer, n=4096) for name, value in found.items()),
    ]
