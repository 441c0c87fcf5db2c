"""Marks of several kinds in a row for each layer, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from normlens.plot.collect import Gathered
from normlens.plot.style import NEUTRAL

__all__ = ["log_marks", "ticks"]


def log_marks(ax: Axes, gathered: Gathered, layers: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Draw each row of the table as a mark, runs beside each other, with a line for its error; set the limits.

    The first kind is filled and the others are not. What is not finite, or has no logarithm, is counted.

    Args:
        ax: the axes.
        gathered: its table has the columns layer, name, value, and maybe error.
        layers: the rows, from the top.
        kinds: the marker of each name.
    """
    ax.set_xscale("log")
    _limits(ax, gathered)  # before anything is drawn: a logarithmic axis cannot find its own for zeros alone
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        for place, (kind, marker) in enumerate(kinds.items()):
            found = table[(table["name"] == kind) & np.isfinite(table["value"])]
            y = np.array([rows[layer] + shift for layer in found["layer"]])
            face = color if place == 0 else "none"
            ax.plot(found["value"], y, marker, color=color, markerfacecolor=face, markersize=5)
            if "error" in found and len(found):
                spread = np.nan_to_num(found["error"].to_numpy(float))
                low = np.maximum(found["value"] - spread, found["value"] / 10)  # an error as large as the value
                ax.hlines(y, low, found["value"] + spread, color=color, linewidth=1)


def ticks(ax: Axes, layers: Sequence[str], values: Mapping[str, float]) -> None:
    """Draw a thin upright stroke through the row of each layer, at what its marks are to be compared with.

    Args:
        ax: the axes.
        layers: the rows, from the top.
        values: one for each layer; what is absent or not finite is left out.
    """
    known = [(row, values[layer]) for row, layer in enumerate(layers) if np.isfinite(values.get(layer, np.nan))]
    if known:
        y, x = map(np.array, zip(*known, strict=True))
        ax.vlines(x, y - 0.4, y + 0.4, color=NEUTRAL, linewidth=0.8, zorder=1)


def _limits(ax: Axes, gathered: Gathered) -> None:
    values = gathered.table["value"].to_numpy(float)
    shown = values[np.isfinite(values) & (values > 0)]
    low, high = (shown.min(), shown.max()) if shown.size else (0.1, 1.0)
    ax.set_xlim(low / 1.5, high * 1.5)
    if high / low < 50:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    lost = len(values) - len(shown)
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not on the axis", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)
