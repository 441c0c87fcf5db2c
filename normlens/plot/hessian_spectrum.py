"""hessian_spectrum: how steep is the loss? Largest and smallest Hessian eigenvalues against optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["hessian_spectrum", "hessian_spectrum_data"]

COLUMNS = ["run", "step", "end", "index", "value", "error", "n"]

LINEAR = 1e-3
"""With negative eigenvalues the axis is linear within this fraction of the largest magnitude, logarithmic outside."""


def hessian_spectrum(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of the loss's Hessian: the largest thick, the next ones thin, the smallest ones dotted.

    The unit is that of the loss over a parameter squared. The axis is logarithmic; with negative eigenvalues it is
    so on both sides of a linear part around zero. The band is the recorded error of the largest.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has eigenvalues of the probe ``hessian_spectrum``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    lines = {}
    for name, color, table in gathered.each():
        for (end, index), rows in table.groupby(["end", "index"], sort=False):
            x, y, error = (rows[column].to_numpy(float) for column in ("step", "value", "error"))
            if (end, index) == ("top", 0):
                lines[name] = curve(ax, x, y, error=error, color=color)
            else:
                thin = curve(ax, x, y, color=color, style="-" if end == "top" else ":")
                thin.set(linewidth=0.8, alpha=0.6)
    _scale(ax, gathered.table["value"].to_numpy(float))
    has_bottom = (gathered.table["end"] == "bottom").any()
    ax.set_ylabel("Hessian eigenvalues:\n— largest" + ("  ··· smallest" if has_bottom else ""))
    step_axis(ax)
    name_runs(ax, lines)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="hessian_spectrum")
    return ax


def hessian_spectrum_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, end (top, bottom), index, value, error, n.

    Index 0 is the largest eigenvalue at the top and the first recorded one at the bottom.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has eigenvalues of the probe ``hessian_spectrum``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "hessian_spectrum", "lambda_max", "top", "bottom")
    rows = rows[rows["layer"] == ""]
    errors = rows[rows["name"] == "lambda_max"].set_index("step")["error"]
    largest = rows["unit"].fillna(0) == 0
    # The scalar is there for its error; where there is an array, its first entry is the same number.
    have = set(rows.loc[rows["name"] == "top", "step"])
    rows = rows[~((rows["name"] == "lambda_max") & rows["step"].isin(have))].copy()
    rows["end"] = np.where(rows["name"] == "bottom", "bottom", "top")
    rows["index"] = rows["unit"].fillna(0).astype(int)
    first = (rows["end"] == "top") & largest[rows.index]
    rows["error"] = np.where(first, rows["step"].map(errors), np.nan)
    return rows.sort_values(["step", "end", "index"], ascending=[True, False, True], kind="stable")


def _scale(ax: Axes, values: np.ndarray) -> None:
    finite = values[np.isfinite(values)]
    if not finite.size or not finite.any():
        return
    if (finite > 0).all():
        log_axis(ax)
        return
    largest = float(np.abs(finite).max())
    ax.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(LINEAR * largest)))
    ax.axhline(0, color=NEUTRAL, linewidth=0.8)


def _answer(gathered: Gathered) -> str:
    top = gathered.table[(gathered.table["end"] == "top") & (gathered.table["index"] == 0)]
    if top.empty:
        return "Smallest eigenvalues of the Hessian; the largest were not recorded"
    if len(gathered.runs) == 1:
        first, last = top.iloc[0], top.iloc[-1]
        error = "" if np.isnan(last["error"]) else f" ± {number(last['error'])}"
        return f"The largest curvature went from {number(first['value'])} to {number(last['value'])}{error}"
    final = {name: float(of_run["value"].iloc[-1]) for name, of_run in top.groupby("run", sort=False)}
    known = {name: value for name, value in final.items() if not np.isnan(value)}
    if not known:
        return "The largest curvature is not a number at the last step of any run"
    ends = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    low, high = (f"{label(name, 24)} ({number(known[name])})" for name in ends)
    return f"Final largest curvature: flattest {low}, sharpest {high}"
