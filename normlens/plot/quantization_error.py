"""quantization_error: how many output steps is each batch norm off when it computes in integers?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["quantization_error", "quantization_error_data"]

KINDS = {"rms": "o", "max": "D"}

ROUNDING = 12**-0.5
"""Root mean square error of rounding the output alone, in LSB; rounding the input adds the gain times as much."""


def quantization_error(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the error of each quantized batch norm at the last step, in steps of its output: rms (disk), max (diamond).

    The thin line is the rms of rounding the output alone, 0.289 for errors that are spread evenly.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has an error of the probe ``quantization_error``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    ax.axvline(ROUNDING, color=NEUTRAL, linewidth=0.8)
    where = ax.get_xaxis_transform()
    ax.text(ROUNDING, 0.02, "rounding alone", transform=where, rotation=90, ha="right", color=NEUTRAL, fontsize=8)
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        for kind, marker in KINDS.items():
            values = table[(table["name"] == kind) & np.isfinite(table["value"])]
            y = [rows[layer] + shift for layer in values["layer"]]
            ax.plot(values["value"], y, marker, color=color, markersize=5,
                    markerfacecolor=color if kind == "rms" else "none")  # fmt: skip
    layer_axis(ax, layers)
    _leave_room(ax, gathered)
    ax.set_xlabel("error of the quantized batch norm (LSB):  ● rms   ◇ max")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="quantization_error")
    return ax


def quantization_error_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, name (rms, max), value (LSB); of each run's last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has an error of the probe ``quantization_error``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "quantization_error", *KINDS)
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last[["step", "layer", "name", "value"]].reset_index(drop=True)


def _leave_room(ax: Axes, gathered: Gathered) -> None:
    """Zero stays on the axis, and what cannot be drawn is counted."""
    values = gathered.table["value"]
    finite = values[np.isfinite(values)]
    widest = max(float(finite.max()) if len(finite) else 0.0, 1.0)
    ax.set_xlim(0, 1.08 * widest)
    lost = len(values) - len(finite)
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[(gathered.table["name"] == "max") & np.isfinite(gathered.table["value"])]
    if table.empty:
        return "The quantization error is not finite in any layer"
    worst = table.loc[table["value"].idxmax()]
    if worst["value"] <= 1:
        return "No quantized batch norm is off by more than 1 LSB"
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    return f"Largest error: {number(worst['value'])} LSB, in {who}{label(worst['layer'], 28)}"
