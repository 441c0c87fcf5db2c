"""gradient_norm: do gradients vanish or explode? Norms of the gradient and of the update against optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, number, title
from normlens.run.store import Run

__all__ = ["gradient_norm", "gradient_norm_data"]

COLUMNS = ["run", "step", "name", "value", "error", "n"]


def gradient_norm(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the Euclidean norm of the gradient on the probe batch (solid) and of the last update (dashed), log axis.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a gradient norm of the probe ``training_curve``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    values = gathered.table["value"]
    lines = {}
    for name, color, table in gathered.each():
        for kind, style in (("update_norm", "--"), ("gradient_norm", "-")):
            rows = table[table["name"] == kind]
            if len(rows):
                x, y, error = (rows[column].to_numpy(float) for column in ("step", "value", "error"))
                lines[name] = curve(ax, x, y, error=error, color=color, style=style)
    if (values[np.isfinite(values)] > 0).any():
        log_axis(ax)
    name_runs(ax, lines)
    has_update = "update_norm" in set(gathered.table["name"])
    ax.set_ylabel("norm:  — gradient  -- update" if has_update else "gradient norm")
    step_axis(ax)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="gradient norms")
    return ax


def gradient_norm_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (gradient_norm, update_norm), value, error, n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a gradient norm of the probe ``training_curve``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    select(run, "training_curve", "gradient_norm")
    return select(run, "training_curve", "gradient_norm", "update_norm")


def _answer(gathered: Gathered) -> str:
    rows = gathered.table[gathered.table["name"] == "gradient_norm"]
    bad = rows[~np.isfinite(rows["value"])]
    if len(bad):
        worst = bad.iloc[0]
        who = "" if len(gathered.runs) == 1 else f" of {label(worst['run'], 24)}"
        return f"The gradient{who} is not finite from step {worst['step']}"
    if len(gathered.runs) == 1:
        return f"Gradient norm {number(rows['value'].iloc[0])} → {number(rows['value'].iloc[-1])}"
    final = {name: float(of_run["value"].iloc[-1]) for name, of_run in rows.groupby("run", sort=False)}
    ends = min(final, key=lambda name: final[name]), max(final, key=lambda name: final[name])
    low, high = (f"{label(name, 24)} ({number(final[name])})" for name in ends)
    return f"Final gradient norm: smallest {low}, largest {high}"
