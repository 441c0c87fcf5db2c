"""elimination: how far is each layer from the elimination singularity, where channels stop to contribute?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["elimination", "elimination_data"]

NEARLY_OFF = -2.326
"""Phi(-2.326) = 0.01: below it a Gaussian channel is active for less than 1 % of its inputs."""

EDGE = 8.0  # no axis reaches further; a Gaussian channel there is off (or on) but for one input in 10^15


def elimination(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the offsets ``s_c = E z_c / Std z_c`` (dimensionless) entering each nonlinearity at the last step.

    For each layer and run: a thin bar over the 5-95 %, a thick one over the 25-75 % quantiles of its live channels, a
    tick at the smallest, a dot for every channel where a Gaussian one is active < 1 % (shaded), a cross for a dead one
    (off for every sample). What lies beyond the axis, infinite offsets included, is drawn at its edge.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has offsets of the probe ``elimination``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    left, right = _limits(gathered.table["offset"].to_numpy(float))
    ax.axvspan(left, NEARLY_OFF, color=NEUTRAL, alpha=0.15, linewidth=0)
    ax.axvline(NEARLY_OFF, color=NEUTRAL, linewidth=0.8)
    for position, (_, color, table) in enumerate(gathered.each()):
        for row, layer in enumerate(layers):
            shift = 0.8 * ((position + 0.5) / len(gathered.runs) - 0.5)
            _draw_layer(ax, table[table["layer"] == layer], row + shift, color, (left, right))
    layer_axis(ax, layers)
    ax.set_xlim(left, right)
    ax.set_xlabel("offset E z / Std z before the nonlinearity\n(shaded: a Gaussian channel is active < 1 %)")
    if len(gathered.runs) > 1:
        for row in range(1, len(layers)):
            ax.axhline(row - 0.5, color=NEUTRAL, linewidth=0.5, alpha=0.3)
    _count_dead(ax, gathered, layers)
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="elimination")
    return ax


def elimination_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, channel, offset, deactivation_rate, dead; at each last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has offsets of the probe ``elimination``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    offsets = select(run, "elimination", "offset")
    offsets = offsets[offsets["step"] == offsets["step"].max()]
    keys = ["step", "layer", "unit"]
    table = offsets[[*keys, "value"]].rename(columns={"value": "offset"})
    frame = run.frame("elimination")
    rates = frame.loc[frame["name"] == "deactivation_rate", [*keys, "value"]]
    table = table.merge(rates.rename(columns={"value": "deactivation_rate"}), on=keys, how="left")
    table["dead"] = table["deactivation_rate"] >= 1
    return pd.DataFrame(table.rename(columns={"unit": "channel"}))


def _limits(offsets: np.ndarray) -> tuple[float, float]:
    finite = offsets[np.isfinite(offsets)]
    lowest, highest = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    return float(np.clip(lowest - 0.3, -EDGE, -3.5)), float(np.clip(highest + 0.3, 1.5, EDGE))


def _draw_layer(ax: Axes, table: pd.DataFrame, y: float, color: str, limits: tuple[float, float]) -> None:
    offsets, dead = table["offset"].to_numpy(float), table["dead"].to_numpy(bool)
    known = ~np.isnan(offsets)
    shown, dead = np.clip(offsets[known], *limits), dead[known]
    if not known.all():
        ax.plot(limits[1], y, marker="$?$", color=color, markersize=7, clip_on=False)  # a NaN has no place on the axis
    if not shown.size:
        return
    if not dead.all():
        q05, q25, q75, q95 = np.quantile(shown[~dead], (0.05, 0.25, 0.75, 0.95))
        ax.plot([q05, q95], [y, y], color=color, linewidth=1)
        ax.plot([q25, q75], [y, y], color=color, linewidth=3.5, solid_capstyle="butt")
    ax.plot(shown.min(), y, "|", color=color, markersize=7)
    off = (shown < NEARLY_OFF) & ~dead
    ax.plot(shown[off], np.full(off.sum(), y), ".", color=color, markersize=4)
    if dead.any():  # an empty line that is not clipped would claim the figure's corner in the layout
        ax.plot(shown[dead], np.full(dead.sum(), y), "x", color=color, markersize=6, markeredgewidth=1.4, clip_on=False)


def _count_dead(ax: Axes, gathered: Gathered, layers: list[str]) -> None:
    """Write the dead channels of each layer at its right end, where a single run leaves the room for it."""
    if len(gathered.runs) > 1:
        return
    counts = gathered.table.groupby("layer")["dead"].agg(["sum", "size"])
    for row, layer in enumerate(layers):
        dead, channels = counts.loc[layer]
        if dead:
            shown = ax.text(1.01, row, f"× {dead}/{channels} dead", transform=ax.get_yaxis_transform())
            shown.set(va="center", fontsize=8, color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    table = gathered.table
    counts = table.groupby(["run", "layer"], sort=False, as_index=False)["dead"].agg(["sum", "size"])
    dead = counts[counts["sum"] > 0]
    if dead.empty:
        lowest = table.iloc[int(np.argmin(table["offset"].fillna(np.inf)))]
        layer = label(lowest["layer"] or "(network)", 28)
        return f"No channel is dead; the lowest offset is {number(lowest['offset'])} in {layer}"
    if len(gathered.runs) == 1:
        worst = dead.iloc[int(np.argmax(dead["sum"] / dead["size"]))]
        layer = label(worst["layer"] or "(network)", 28)
        return f"{layer}: {worst['sum']} of {worst['size']} channels dead at step {table['step'].max()}"
    totals = counts.groupby("run", sort=False, as_index=False)[["sum", "size"]].sum()
    totals = totals[totals["sum"] > 0].sort_values("sum", ascending=False, kind="stable")
    said = [f"{label(row['run'], 24)} ({row['sum']} of {row['size']})" for _, row in totals.iloc[:3].iterrows()]
    rest = "; no other run has any" if 3 >= len(totals) < len(gathered.runs) else ""
    return f"Dead channels: {', '.join(said)}{rest}"
