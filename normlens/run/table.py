"""From measurements to one tidy table: a row for every number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from normlens.run.reading import Measurement

__all__ = ["COLUMNS", "tidy"]

COLUMNS = ["step", "layer", "unit", "name", "value", "error", "units", "n", "mode"]


def tidy(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """Spread scalars and one-dimensional readings over rows; see :meth:`normlens.run.store.Run.frame`."""
    rows = [(m, r) for m in measurements for r in m.readings if r.array.ndim <= 1]
    sizes = [r.array.size for _, r in rows]
    units = [np.arange(r.array.size) if r.array.ndim else np.array([-1]) for _, r in rows]
    index = np.concatenate(units) if units else np.array([], dtype=int)
    unit = pd.arrays.IntegerArray(index, mask=index < 0)
    columns = pd.DataFrame({
        "step": [m.step for m, _ in rows],
        "layer": [r.layer for _, r in rows],
        "name": [r.name for _, r in rows],
        "error": [r.error for _, r in rows],
        "units": [r.units or "" for _, r in rows],
        "n": [r.n for _, r in rows],
        "mode": [m.mode for m, _ in rows],
    }).astype({"step": np.int64, "error": float, "n": np.int64})  # fmt: skip
    table = columns.loc[np.repeat(columns.index, np.array(sizes, dtype=int))].reset_index(drop=True)
    values = np.concatenate([r.array.reshape(-1) for _, r in rows]) if rows else np.array([], dtype=float)
    # Halves and singles as doubles: their shortest decimals, in a CSV, are not those of the same number as a double.
    table["value"] = values.astype(float) if values.dtype.kind == "f" else values
    table["unit"] = unit
    return table[COLUMNS]
