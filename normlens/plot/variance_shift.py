"""variance_shift: how much larger is the variance at each batch norm in training than in use?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["variance_shift", "variance_shift_data"]

KINDS = {"shift": "o", "eval_to_running": "D"}


def variance_shift(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw for each batch norm the variance of its input in training over that in use (disk), at the last step.

    Diamonds are the variance in use over the running one that the layer divides by; the bars are 95 % intervals, the
    upright strokes what the dropout in front of the layer alone predicts of the first ratio. Without a shift both are
    one, the thin line. The axis is logarithmic.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a shift of the probe ``variance_shift``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    ax.axvline(1, color=NEUTRAL, linewidth=0.8)
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        for kind, marker in KINDS.items():
            values = table[(table["name"] == kind) & np.isfinite(table["value"])]
            y = np.array([rows[layer] + shift for layer in values["layer"]])
            width = 1.96 * values["error"].fillna(0.0)
            ax.hlines(y, values["value"] - width, values["value"] + width, color=color, linewidth=1.2)
            face = color if kind == "shift" else "none"
            ax.plot(values["value"], y, marker, color=color, markerfacecolor=face, markersize=5)
            ax.plot(values["predicted"], y, "|", color=NEUTRAL, markersize=11, markeredgewidth=1.6)
    layer_axis(ax, layers)
    _scale(ax, gathered)
    told = "   | dropout alone" if gathered.table["predicted"].notna().any() else ""
    ax.set_xlabel(f"variances:  ● training / use   ◇ use / running{told}")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="variance_shift")
    return ax


def variance_shift_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, name (shift, eval_to_running), value, error, predicted; each last.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a shift of the probe ``variance_shift``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "variance_shift", *KINDS, "shift_predicted")
    rows = rows[rows["step"] == rows["step"].max()]
    said = rows[rows["name"] == "shift_predicted"].set_index("layer")["value"]
    table = rows[rows["name"].isin(KINDS)][["step", "layer", "name", "value", "error"]].reset_index(drop=True)
    predicted = table["layer"].map(said).where(table["name"] == "shift").astype(float)
    return pd.DataFrame(table.assign(predicted=predicted))


def _scale(ax: Axes, gathered: Gathered) -> None:
    """A logarithmic axis with one in its middle, wide enough that a few percent are not blown up to fill it."""
    values = gathered.table[["value", "predicted"]].to_numpy(float)
    finite = values[np.isfinite(values) & (values > 0)]
    reach = max(float(np.abs(np.log(finite)).max()) if finite.size else 0.0, np.log(1.5))
    ax.set_xscale("log")
    ax.set_xlim(np.exp(-1.15 * reach), np.exp(1.15 * reach))
    wide = [t * base for base in (0.01, 0.1, 1.0, 10.0) for t in (1, 2, 5)]
    ticks = wide if reach > 1 else [0.5, 0.7, 1, 1.4, 2]
    low, high = ax.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
    ax.minorticks_off()
    lost = int((~np.isfinite(gathered.table["value"])).sum())
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[(gathered.table["name"] == "shift") & np.isfinite(gathered.table["value"])]
    if table.empty:
        return "The variance shift is not known in any layer"
    worst = table.loc[np.log(table["value"]).abs().idxmax()]
    if abs(worst["value"] - 1) < 0.05:
        return "Variances in training and in use agree to 5 % in every batch norm"
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    return f"Variance in training over that in use: {number(worst['value'])} at {who}{label(worst['layer'], 28)}"
