"""edge_of_stability: is the step size at the edge of stability? Sharpness over its threshold against steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["edge_of_stability", "edge_of_stability_data"]

AT_EDGE = 0.9
"""From this ratio on a run is called at the edge: sharpness hovers around the threshold and is rarely exactly on it."""

COLUMNS = ["run", "step", "ratio", "error", "sharpness", "threshold", "n"]


def edge_of_stability(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the sharpness as a fraction of what the optimizer stands (dimensionless), with its error band.

    On a quadratic loss a step size is stable below 1, the edge (gray); full-batch training of networks rises to it
    and hovers there (Cohen et al., ICLR 2021). For an adaptive optimizer it is the preconditioned sharpness.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a ratio of the probe ``edge_of_stability``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    lines = {}
    for name, color, table in gathered.each():
        x, y, error = (table[column].to_numpy(float) for column in ("step", "ratio", "error"))
        lines[name] = curve(ax, x, y, error=error, color=color)
    ax.axhline(1, color=NEUTRAL, linewidth=0.8)
    ax.text(0.005, 1, "edge of stability", transform=ax.get_yaxis_transform(), va="bottom", color=NEUTRAL, fontsize=8)
    ratios = gathered.table["ratio"].to_numpy(float)
    finite = ratios[np.isfinite(ratios)]
    if finite.size and finite.min() > 0 and max(finite.max(), 1 / finite.min()) > 10:
        log_axis(ax)
    ax.set_ylabel("sharpness / stable limit")
    step_axis(ax)
    name_runs(ax, lines)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="edge_of_stability")
    return ax


def edge_of_stability_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, ratio, error (of the ratio), sharpness, threshold, n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a ratio of the probe ``edge_of_stability``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    select(run, "edge_of_stability", "ratio")
    rows = select(run, "edge_of_stability", "ratio", "sharpness", "threshold")
    rows = rows[rows["layer"] == ""].set_index("step")
    table = rows.loc[rows["name"] == "ratio", ["value", "n"]].rename(columns={"value": "ratio"})
    for name in ("sharpness", "threshold"):
        table[name] = rows.loc[rows["name"] == name, "value"]
    # The threshold is known exactly, so that the ratio's error is the sharpness's, in thresholds.
    own = rows.loc[rows["name"] == "ratio", "error"]
    table["error"] = own.fillna(rows.loc[rows["name"] == "sharpness", "error"] / table["threshold"])
    return table.reset_index()


def _answer(gathered: Gathered) -> str:
    table = gathered.table
    at = table[table["ratio"] >= AT_EDGE]
    if table["ratio"].isna().all():
        return "The sharpness is not a number"
    if at.empty:
        top = table.iloc[int(np.nanargmax(table["ratio"]))]
        who = "" if len(gathered.runs) == 1 else f" ({label(top['run'], 24)})"
        return f"Below the edge of stability: at most {number(top['ratio'])} of it{who}, at step {top['step']}"
    if len(gathered.runs) == 1:
        last = table.dropna(subset="ratio").iloc[-1]
        since, end = at["step"].iloc[0], number(last["ratio"])
        return f"At the edge of stability or beyond from step {since}; {end} of it in the end"
    firsts = at.groupby("run", sort=False)["step"].first()
    named = [f"{label(name, 24)} (from step {step})" for name, step in list(firsts.items())[:3]]
    rest = f" and {len(firsts) - 3} more" if len(firsts) > 3 else ""
    return f"At the edge of stability or beyond: {', '.join(named)}{rest}"
