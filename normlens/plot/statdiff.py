"""statdiff: how far are the normalized features of each layer from batch norm's mean 0 and deviation 1?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["statdiff", "statdiff_data"]

KINDS = {"statdiff_mean": "o", "statdiff_std": "D"}


def statdiff(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw StatDiff of each normalization layer at the last step: mean_c |mu_c| (disk), mean_c |sigma_c - 1| (diamond).

    Dimensionless; the statistics of a channel pool over samples and positions, before the affine map. Batch norm has
    zero of both by construction, and the thin line at zero is its prediction.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a StatDiff of the probe ``elimination``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    ax.axvline(0, color=NEUTRAL, linewidth=0.8)
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        for kind, marker in KINDS.items():
            values = table[(table["name"] == kind) & np.isfinite(table["value"])]
            y = [rows[layer] + shift for layer in values["layer"]]
            face = color if kind == "statdiff_mean" else "none"
            ax.plot(values["value"], y, marker, color=color, markerfacecolor=face, markersize=5)
    layer_axis(ax, layers)
    _leave_room(ax, gathered)
    ax.set_xlabel("StatDiff:  ● mean   ◇ deviation")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="StatDiff")
    return ax


def statdiff_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, name (statdiff_mean, statdiff_std), value, error; each last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a StatDiff of the probe ``elimination``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "elimination", *KINDS)
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last[["step", "layer", "name", "value", "error"]].reset_index(drop=True)


def _leave_room(ax: Axes, gathered: Gathered) -> None:
    """Zero stays on the axis, and rounding errors are not blown up to fill it."""
    values = gathered.table["value"]
    finite = values[np.isfinite(values)]
    widest = max(float(finite.abs().max()) if len(finite) else 0.0, 0.01)
    ax.set_xlim(-0.05 * widest, 1.08 * widest)
    lost = len(values) - len(finite)
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[np.isfinite(gathered.table["value"])]
    if table.empty:
        return "StatDiff is not finite in any layer"
    worst = table.loc[table["value"].idxmax()]
    if worst["value"] < 0.01:
        return "Every layer's statistics are batch norm's, to 0.01"
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    return f"Furthest from batch norm: {who}{label(worst['layer'], 28)} ({number(worst['value'])})"
