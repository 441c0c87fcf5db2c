"""What rules and questions ask of a run's tables, where an absent one is empty instead of an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["by_layer", "history", "latest", "rows", "scalar", "since"]


def rows(run: Run, probe: str, *names: str) -> pd.DataFrame:
    """Return the rows of the named readings of a probe (all of them without names); none if it was not recorded."""
    try:
        frame = run.frame(probe)
    except NotRecordedError:
        return pd.DataFrame(columns=["step", "layer", "unit", "name", "value", "error", "units", "n", "mode"])
    return pd.DataFrame(frame[frame["name"].isin(names)]) if names else frame


def by_layer(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each layer with its rows, in the order of first appearance."""
    for layer in dict.fromkeys(frame["layer"]):
        yield str(layer), pd.DataFrame(frame[frame["layer"] == layer])


def history(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of one scalar reading, ascending in steps, with a fresh index."""
    return pd.DataFrame(frame[frame["name"] == name]).sort_values("step", kind="stable").reset_index(drop=True)


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last step."""
    return pd.DataFrame(frame[frame["step"] == frame["step"].max()])


def scalar(run: Run, probe: str, name: str) -> float:
    """Return the last value of a scalar reading of the whole network, or NaN."""
    found = rows(run, probe, name)
    found = found[found["layer"] == ""]
    return float(found["value"].iloc[-1]) if len(found) else float("nan")


def since(steps: Iterable[int], flags: Iterable[bool]) -> int:
    """Return the first step of the last unbroken stretch of true flags, which must reach to the end.

    Raises:
        ValueError: the last flag is not true.
    """
    at, on = list(steps), np.asarray(list(flags), dtype=bool)
    if not on.size or not on[-1]:
        raise ValueError(f"the last flag must be true; got {on.tolist()}; ask only for what holds at the end")
    off = np.flatnonzero(~on)
    return int(at[off[-1] + 1 if off.size else 0])
