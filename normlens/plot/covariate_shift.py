"""covariate_shift: do the layers chase each other? Shift and turn of the layers' gradients against optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, stack, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["covariate_shift", "covariate_shift_data"]

PANELS = {"shift": "shift ‖G − G′‖", "cosine": "cosine of G, G′"}


def covariate_shift(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw how far a step of the layers below moves a layer's gradient (above) and by which cosine it turns it (below).

    Lines are medians over the measured layers, bands reach from the lowest to the highest. A cosine of 1 is a gradient
    that the layers below do not turn.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a shift of the probe ``covariate_shift``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    panels = stack(ax, (1, 1))
    for panel, (kind, words) in zip(panels, PANELS.items(), strict=True):
        dress(panel)
        lines = {name: _draw(panel, table, kind, color) for name, color, table in gathered.each()}
        panel.set_ylabel(words)
        if kind == "cosine":
            panel.axhline(1, color=NEUTRAL, linewidth=0.8)
            continue
        low = gathered.table.loc[gathered.table["name"] == kind, "lowest"]
        if (low[np.isfinite(low)] > 0).all() and np.isfinite(low).any():
            log_axis(panel)
        name_runs(panel, lines, host=ax)
    step_axis(panels[-1])
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="covariate_shift")
    return ax


def covariate_shift_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (shift, cosine), value (median over the layers), lowest, highest.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a shift of the probe ``covariate_shift``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "covariate_shift", *PANELS)
    rows["lost"] = rows["value"].isna()
    layers = rows.groupby(["step", "name"], sort=False)
    table = layers["value"].agg(value="median", lowest="min", highest="max", layers="size")
    table.loc[layers["lost"].any(), ["value", "lowest", "highest"]] = np.nan  # the median of the rest would hide it
    return table.reset_index()


def _draw(ax: Axes, table: pd.DataFrame, kind: str, color: str) -> Line2D:
    rows = table[table["name"] == kind]
    x, y, low, high = (rows[column].to_numpy(float) for column in ("step", "value", "lowest", "highest"))
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    return curve(ax, x, y, color=color)


def _answer(gathered: Gathered) -> str:
    turned = {}
    for name, _, table in gathered.each():
        known = table[(table["name"] == "cosine") & np.isfinite(table["value"])]["value"]
        if len(known):
            turned[name] = math.degrees(math.acos(min(1.0, max(-1.0, float(known.iloc[-1])))))
    if not turned:
        return "How the layers turn each other's gradients is not a number"
    if len(gathered.runs) == 1:
        return f"A step of the layers below turns a layer's gradient by {number(*turned.values())}°"
    ends = min(turned, key=lambda name: turned[name]), max(turned, key=lambda name: turned[name])
    low, high = (f"{label(name, 24)} ({number(turned[name])}°)" for name in ends)
    return f"Turn of a gradient by the layers below: least {low}, most {high}"
