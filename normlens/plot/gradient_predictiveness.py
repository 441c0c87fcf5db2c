"""gradient_predictiveness: how far ahead does the gradient see? Ranges of loss and gradient along it against steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, stack, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, number, title
from normlens.run.store import Run

__all__ = ["gradient_predictiveness", "gradient_predictiveness_data"]

PANELS = {"loss": "loss along\nthe gradient", "change": "change of the\ngradient / its norm"}
NAMES = [f"{kind}_{end}" for kind in PANELS for end in ("min", "max")]


def gradient_predictiveness(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    r"""Draw as bands the range of the loss above that of the gradient's change :math:`\|g - g'\| / \|g\|`.

    Both are taken along the negative gradient at the probe's multiples of the learning rate. A narrow lower band near
    0 is a gradient that holds for the whole step; from 1 on it has nothing left of what it was.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has ranges of the probe ``gradient_predictiveness``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    panels = stack(ax, (1, 1))
    for panel, (kind, words) in zip(panels, PANELS.items(), strict=True):
        dress(panel)
        lines = {name: _band(panel, table, kind, color) for name, color, table in gathered.each()}
        values = gathered.table.loc[gathered.table["name"].str.startswith(kind), "value"]
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
            log_axis(panel)
        panel.set_ylabel(words)
        if kind == "loss":
            name_runs(panel, lines, host=ax)
    step_axis(panels[-1])
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="gradient_predictiveness")
    return ax


def gradient_predictiveness_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (loss_min, loss_max, change_min, change_max), value.

    The changes are those of the gradient over its norm.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has ranges of the probe ``gradient_predictiveness``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "gradient_predictiveness", *NAMES, "gradient_norm")
    norms = rows[rows["name"] == "gradient_norm"].set_index("step")["value"]
    table = rows.loc[rows["name"].isin(NAMES), ["step", "name", "value"]].reset_index(drop=True)
    changes = table["name"].str.startswith("change")
    norm = table["step"].map(norms).where(changes, 1.0)
    table["value"] = table["value"] / norm.where(norm != 0)  # of a gradient that is none, no change is known
    return table


def _band(ax: Axes, table: pd.DataFrame, kind: str, color: str) -> Line2D:
    low, high = (table[table["name"] == f"{kind}_{end}"] for end in ("min", "max"))
    x, lower, upper = (rows.to_numpy(float) for rows in (high["step"], low["value"], high["value"]))
    curve(ax, x, lower, color=color)
    ax.fill_between(x, lower, upper, color=color, alpha=0.15, linewidth=0)
    return curve(ax, x, upper, color=color)


def _answer(gathered: Gathered) -> str:
    last = {}
    for name, _, table in gathered.each():
        known = table[(table["name"] == "change_max") & np.isfinite(table["value"])]["value"]
        if len(known):
            last[name] = float(known.iloc[-1])
    if not last:
        return "How the gradient changes along itself is not known: it is zero or not finite"
    if len(gathered.runs) == 1:
        return f"Along the probed steps the gradient changes by up to {number(*last.values())} of its norm"
    ends = min(last, key=lambda name: last[name]), max(last, key=lambda name: last[name])
    low, high = (f"{label(name, 24)} ({number(last[name])})" for name in ends)
    return f"Final change of the gradient over its norm: smallest {low}, largest {high}"
