"""calibration: what do noisy weights cost, and what do calibrated batch norms give back? Against optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from normlens.plot.canvas import curve, name_runs, new_axes, note, stack, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, title
from normlens.run.store import Run

__all__ = ["calibration", "calibration_data"]

STATES = {"clean": "--", "noisy": ":", "calibrated": "-"}
COLUMNS = ["run", "step", "name", "value", "error", "n"]

SMALL = 0.02
"""A loss of accuracy that the title does not call one: two points."""


def calibration(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the accuracy above the expected calibration error (both 0 to 1), each in three states, against steps.

    Dashed: without noise; dotted: under noise on the weights; solid: under the same noise after calibration of the
    batch norms, left out where that changes nothing, as without batch norms. Bands are one standard error, of the
    calibrated state alone; a cross marks a value that is not finite.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has an accuracy of the probe ``calibration``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    panels = stack(ax, (3, 2))
    for panel, kind in zip(panels, ("accuracy", "ece"), strict=True):
        dress(panel)
        lines = {}
        for name, color, table in gathered.each():
            lines[name] = _states(panel, table, kind, color)
        if kind == "accuracy":
            name_runs(panel, lines, host=ax)
    panels[0].set_ylabel("accuracy:  - - clean\n— calibrated  ··· noisy")
    panels[1].set_ylabel("calibration\nerror (ECE)")
    step_axis(panels[-1])
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="calibration")
    return ax


def calibration_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (accuracy_clean and the like), value, error, n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has an accuracy of the probe ``calibration``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    return select(run, "calibration", *(f"{kind}_{state}" for kind in ("accuracy", "ece") for state in STATES))


def _states(ax: Axes, table: pd.DataFrame, kind: str, color: str) -> Line2D:
    """Draw each state of a run, and return the line of the last one."""
    states = {state: table[table["name"] == f"{kind}_{state}"] for state in STATES}
    noisy, calibrated = (states[state]["value"].to_numpy(float) for state in ("noisy", "calibrated"))
    if np.array_equal(noisy, calibrated, equal_nan=True):  # it would hide what it has not changed
        del states["calibrated"]
    for state, rows in states.items():
        x, y, error = (rows[column].to_numpy(float) for column in ("step", "value", "error"))
        band = error if state == "calibrated" else None
        line = curve(ax, x, y, error=band, color=color, style=STATES[state])
    return line


def _answer(gathered: Gathered) -> str:
    table = gathered.table[gathered.table["name"].str.startswith("accuracy")]
    at_end = table[table["step"] == table.groupby("run")["step"].transform("max")]  # last() would pass over a nan
    last = at_end.set_index(["run", "name"])["value"].unstack("name")
    clean, noisy, calibrated = (last[f"accuracy_{state}"].to_numpy(float) for state in STATES)
    lost, back = clean - noisy, calibrated - noisy
    if not np.isfinite(lost).any():
        return "The accuracy under noise is not finite"
    worst = int(np.nanargmax(lost))
    if lost[worst] < SMALL:
        return f"Noise on the weights costs less than {100 * SMALL:.0f} points of accuracy"
    who = "N" if len(last) == 1 else f"{label(last.index[worst], 24)}: n"
    returned = f"{100 * back[worst]:.0f}" if back[worst] > 0 else "none"
    return f"{who}oise on the weights costs {100 * lost[worst]:.0f} points of accuracy, calibration returns {returned}"
