"""information_ratio: which part of the mutual information does each dropout leave, and is it keep squared?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, title
from normlens.run.store import Run

__all__ = ["information_ratio", "information_ratio_data"]

KINDS = {"ratio": "o", "within_ratio": "D"}

INTERVAL = 1.96
"""Standard errors on either side that hold 95 % of a normal distribution."""

WIDE = 3.0
"""A ratio above which the axis is logarithmic: shared gates can raise the information many times."""


def information_ratio(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the ratio of the information behind the gates to that before them with its 95 % interval, by layer.

    Disks are pairs of channels, diamonds neighbors within a channel; the upright strokes are what theory says: keep
    squared, and for a gate that neighbors share keep plus its entropy over the information before.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a ratio of the probe ``mutual_information``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    rows = {layer: row for row, layer in enumerate(layers)}
    places = len(gathered.runs) * len(KINDS)
    for position, (_, color, table) in enumerate(gathered.each()):
        for index, (kind, marker) in enumerate(KINDS.items()):
            shift = 0.7 * ((position * len(KINDS) + index + 0.5) / places - 0.5)
            _points(ax, table[table["name"] == kind], rows, shift, color, marker)
    layer_axis(ax, layers)
    _scale(ax, gathered)
    ax.set_xlabel("information behind the gates over that before\n● two channels   ◇ neighbors in a channel   | theory")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="mutual_information")
    return ax


def information_ratio_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, name (ratio, within_ratio), value, error, predicted; each last.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a ratio of the probe ``mutual_information``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "mutual_information", *KINDS)
    table = rows[rows["step"] == rows["step"].max()][["step", "layer", "name", "value", "error"]]
    said = select(run, "mutual_information", *(f"{kind}_predicted" for kind in KINDS))
    said = said.assign(name=said["name"].str.removesuffix("_predicted"), predicted=said["value"])
    keys = ["step", "layer", "name"]
    return pd.DataFrame(table.merge(said[[*keys, "predicted"]], how="left", on=keys))


def _points(ax: Axes, table: pd.DataFrame, rows: dict[str, int], shift: float, color: str, marker: str) -> None:
    table = table[np.isfinite(table["value"])]
    y = np.array([rows[layer] + shift for layer in table["layer"]])
    width = INTERVAL * table["error"].fillna(0.0)
    ax.hlines(y, table["value"] - width, table["value"] + width, color=color, linewidth=1.2)
    face = color if marker == "o" else "none"
    ax.plot(table["value"], y, marker, color=color, markerfacecolor=face, markersize=5)
    ax.plot(table["predicted"], y, "|", color=NEUTRAL, markersize=11, markeredgewidth=1.6)


def _scale(ax: Axes, gathered: Gathered) -> None:
    """Zero and one stay on the axis; it is logarithmic where shared gates raise the information many times."""
    values = gathered.table[["value", "predicted"]].to_numpy(float)
    finite = values[np.isfinite(values)]
    widest = float(finite.max()) if finite.size else 1.0
    lost = int((~np.isfinite(gathered.table["value"])).sum())
    if widest > WIDE:
        ax.set_xscale("log")
        low = finite[finite > 0].min()
        lost += int((gathered.table["value"] <= 0).sum())
        ax.set_xlim(min(0.7 * low, 0.5), 1.6 * widest)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(min(0.0, 1.1 * float(finite.min()) if finite.size else 0.0), max(1.1, 1.1 * widest))
    if lost:
        ax.text(0.01, 0.02, f"× {lost} not known", transform=ax.transAxes, ha="left", color=NEUTRAL, fontsize=9)


def _answer(gathered: Gathered) -> str:
    known = gathered.table[np.isfinite(gathered.table[["value", "error", "predicted"]]).all(axis=1)]
    if known.empty:
        return "Too little information before the gates to say what they leave of it"
    off = ((known["value"] - known["predicted"]) / known["error"]).abs().to_numpy(float)
    words = f"{int((off <= INTERVAL).sum())} of {len(known)} ratios hold the theory's value in their interval"
    if off.max() <= INTERVAL:
        return words
    worst = known.iloc[int(off.argmax())]
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    side = "below" if worst["value"] < worst["predicted"] else "above"
    return f"{words}; {who}{label(worst['layer'], 28)} is furthest {side} it"
