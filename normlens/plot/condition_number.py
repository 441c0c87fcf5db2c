"""condition_number: how ill-conditioned is the loss? Largest over smallest nonzero curvature against steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["condition_number", "condition_number_data"]

COLUMNS = ["run", "step", "value", "error", "bound", "low", "high", "tolerance", "nullity", "negative", "n"]


def condition_number(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the condition number (dimensionless, log axis): largest over smallest eigenvalue above the tolerance.

    A triangle is a lower bound, where the smallest eigenvalue could not be reached. The pale band of a single run
    spans the values at all tolerances that were tried: where it is wide, the number is a matter of the tolerance.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a condition number of the probe ``condition_number``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    lines, alone = {}, len(gathered.runs) == 1
    for name, color, table in gathered.each():
        x, y, error, low, high = (table[c].to_numpy(float) for c in ("step", "value", "error", "low", "high"))
        if alone:
            ax.fill_between(x, low, high, color=color, alpha=0.1, linewidth=0)
        lines[name] = curve(ax, x, y, error=error, color=color)
        bound = table["bound"].to_numpy(bool)
        if bound.any():
            ax.plot(x[bound], y[bound], "^", color=color, markersize=5)
    values = gathered.table["value"]
    if (values[np.isfinite(values)] > 0).any():
        log_axis(ax)
    ax.set_ylabel("condition number κ*" + ("\n▲ at least" if gathered.table["bound"].any() else ""))
    step_axis(ax)
    name_runs(ax, lines)
    if alone and gathered.table["low"].notna().any():
        ax.text(0.01, 0.99, "band: all tolerances tried", transform=ax.transAxes, va="top", color=NEUTRAL, fontsize=8)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="condition_number")
    return ax


def condition_number_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers, one row for each run and step.

    Columns: run, step, value, error, bound (whether value is only a lower bound), low and high (the smallest and the
    largest over the tolerances), tolerance, nullity, negative (eigenvalues below minus the tolerance), n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a condition number of the probe ``condition_number``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    select(run, "condition_number", "kappa", "kappa_lower")
    frame = run.frame("condition_number")
    frame = frame[frame["layer"] == ""]
    wide = frame[frame["unit"].isna()].pivot_table(index="step", columns="name", values="value", dropna=False)
    names = ["kappa", "kappa_lower", "tolerance", "nullity", "negative"]
    wide = wide.reindex(columns=names)
    kappa = frame[frame["name"].isin(names[:2])].groupby("step")[["error", "n"]].max()
    spread = (
        frame[(frame["name"] == "curve") & np.isfinite(frame["value"])].groupby("step")["value"].agg(["min", "max"])
    )
    table = wide.join(kappa).join(spread.rename(columns={"min": "low", "max": "high"}))
    table["bound"] = table["kappa"].isna() & table["kappa_lower"].notna()
    table["value"] = table["kappa"].fillna(table["kappa_lower"])
    return table.reset_index().rename_axis(columns=None)


def _answer(gathered: Gathered) -> str:
    table = gathered.table
    if len(gathered.runs) == 1:
        first, last = table.iloc[0], table.iloc[-1]
        return f"Condition number {said(first)} → {said(last)}"
    final = {name: of_run.iloc[-1] for name, of_run in table.groupby("run", sort=False)}
    final = {name: row for name, row in final.items() if not np.isnan(row["value"])}
    if not final:
        return "No run has a condition number at its last step"
    ends = min(final, key=lambda n: final[n]["value"]), max(final, key=lambda n: final[n]["value"])
    best, worst = (f"{label(name, 24)} ({said(final[name])})" for name in ends)
    return f"Final condition number: smallest {best}, largest {worst}"


def said(row: pd.Series) -> str:
    """Return the condition number of a row of the table in words."""
    return ("≥ " if row["bound"] else "") + number(float(row["value"]))
