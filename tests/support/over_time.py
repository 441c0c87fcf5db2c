"""Runs in which the readings of one layer change over time, written down as one list for each reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from normlens.run.reading import Measurement, Reading
from normlens.run.store import Run

__all__ = ["measurements", "over_time"]


def measurements(
    probe: str, layer: str = "", *, steps: Sequence[int] | None = None, error: float = 0.01, **values: Sequence
) -> list[Measurement]:
    """``measurements("p", "conv", kappa=[1, 2])``: kappa is 1 at step 0 and 2 at step 10; None is no reading."""
    length = len(next(iter(values.values())))
    return [
        Measurement(step, probe, readings=tuple(
            Reading(name, np.asarray(row[i], float), layer=layer, error=error, n=256,
                    dims=("channel",) * np.ndim(row[i]))
            for name, row in values.items() if row[i] is not None))
        for i, step in enumerate(steps or range(0, 10 * length, 10))
    ]  # fmt: skip


def over_time(write: Callable[..., Run], probe: str, layer: str = "", **values: Sequence) -> Run:
    """Write a run of these measurements alone."""
    return write(measurements(probe, layer, **values))
