"""A density of eigenvalues as the probe records one, made by hand."""

from __future__ import annotations

import math

import numpy as np

from normlens.run.reading import Reading


def density_readings(largest: float) -> tuple[Reading, ...]:
    """Most mass at zero, some at the largest eigenvalue, as two probes see it."""
    grid, width = np.linspace(-0.2 * largest, 1.2 * largest, 57), largest / 20
    nodes = largest * np.array([[-0.05, 0.0, 1.0], [-0.05, 0.0, 1.0]])
    weights = np.array([[0.1, 0.85, 0.05], [0.1, 0.83, 0.07]])
    bells = np.exp(-(((grid[:, None] - nodes[0]) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    each = bells @ weights.T
    return (
        Reading("density", each.mean(1), dims=("grid",), n=256),
        Reading("density_stderr", each.std(1, ddof=1) / math.sqrt(2), dims=("grid",), n=256),
        Reading("grid", grid, dims=("grid",)),
        Reading("ritz", nodes, dims=("probe", "node"), n=256),
        Reading("ritz_weights", weights, dims=("probe", "node"), n=256),
        Reading("resolution", 0.02 * largest),
        Reading("density_width", width),
        Reading("density_matvecs", 6.0),
        Reading("share_flat", 0.84 - 0.01 * largest, error=0.01, n=256),
    )
