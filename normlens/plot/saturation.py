"""saturation: what share of the values sits where each bounded nonlinearity is flat? One row for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["saturation", "saturation_data"]

HALF = 0.5
"""From here on the diagnosis calls a layer saturated."""


def saturation(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the share of saturated values of each bounded nonlinearity at the last step (dimensionless).

    A disk for each run, with one standard error; the thin line is at a half, from where on the diagnosis is alarmed.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a share of the probe ``saturation``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    ax.axvline(HALF, color=NEUTRAL, linewidth=0.8)
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        found = table[np.isfinite(table["value"])]
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        y = np.array([rows[layer] + shift for layer in found["layer"]])
        spread = np.nan_to_num(found["error"].to_numpy(float))
        ax.plot(found["value"], y, "o", color=color, markersize=5)
        ax.hlines(y, found["value"] - spread, found["value"] + spread, color=color, linewidth=1)
    layer_axis(ax, layers)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("share of values where the slope is below a twentieth")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="saturation")
    return ax


def saturation_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, value, error, n; each run's last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a share of the probe ``saturation``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "saturation", "saturated")
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last[["step", "layer", "value", "error", "n"]].reset_index(drop=True)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[np.isfinite(gathered.table["value"])]
    if table.empty:
        return "The share of saturated values is not finite in any layer"
    worst = table.loc[table["value"].idxmax()]
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    return f"Most saturated: {who}{label(worst['layer'], 28)} ({number(100 * worst['value'])} % of its values)"
