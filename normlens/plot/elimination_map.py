"""elimination_map: where does each channel stand, mean against spread, and which ones are in the dead region?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import legend, new_axes, note
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.elimination import NEARLY_OFF
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["elimination_map", "elimination_map_data"]

RAYS = (-1.0, 0.0, 1.0)


def elimination_map(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the spread Std z of each channel over its mean E z, of what enters the nonlinearities at the last step.

    Both in units of their layer's root mean square, so that all layers fit into one half plane. On a ray from the
    origin the offset ``s = E z / Std z`` is constant; in the shaded wedge a Gaussian channel is active < 1 %, and the
    axis to the left is the elimination singularity. A dot for a channel, a cross for a dead one (off for every sample).

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has means and deviations of the probe ``elimination``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax, grid="")
    for _, color, table in gathered.each():
        wide = _wide(table)
        finite = wide[np.isfinite(wide["mean"]) & np.isfinite(wide["std"])]
        dead = (finite["active"] <= 0).to_numpy(bool)
        live = finite[~dead]
        ax.plot(live["mean"], live["std"], ".", color=color, markersize=5, alpha=0.6, markeredgewidth=0)
        if dead.any():
            gone = finite[dead]
            ax.plot(gone["mean"], gone["std"], "x", color=color, markersize=6, markeredgewidth=1.4, clip_on=False)
    _region(ax, gathered)
    ax.set_xlabel("mean E z (of the layer's rms; × dead)")
    ax.set_ylabel("spread Std z")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="means and deviations")
    return ax


def elimination_map_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, channel, name (mean, std), value, active; at each last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has means and deviations of the probe ``elimination``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "elimination", "mean", "std")
    rows = rows.loc[rows["step"] == rows["step"].max(), ["step", "layer", "unit", "name", "value"]]
    frame = run.frame("elimination")
    rates = frame.loc[frame["name"] == "deactivation_rate", ["step", "layer", "unit", "value"]]
    table = rows.merge(rates.rename(columns={"value": "rate"}), on=["step", "layer", "unit"], how="left")
    squares = table["value"].where(np.isfinite(table["value"])) ** 2
    scale = (2 * squares.groupby(table["layer"]).transform("mean")) ** 0.5
    table["value"] = table["value"] / scale.where(scale > 0, 1.0)
    table["active"] = 1 - table.pop("rate")
    return pd.DataFrame(table.rename(columns={"unit": "channel"}))


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each channel, with mean and std beside each other."""
    keys = ["layer", "channel"]
    parts = {name: table[table["name"] == name].set_index(keys) for name in ("mean", "std")}
    return pd.DataFrame(
        {"mean": parts["mean"]["value"], "std": parts["std"]["value"], "active": parts["mean"]["active"]}
    )


def _region(ax: Axes, gathered: Gathered) -> None:
    """Shade the dead wedge and draw rays of constant offset, to the ends of what is shown."""
    values = gathered.table.loc[np.isfinite(gathered.table["value"])]
    means = values.loc[values["name"] == "mean", "value"]
    left = min(-1.5, 1.08 * float(means.min())) if len(means) else -1.5
    right = max(1.5, 1.08 * float(means.max())) if len(means) else 1.5
    spreads = values.loc[values["name"] == "std", "value"]
    top = max(1.2, 1.08 * float(spreads.max())) if len(spreads) else 1.2
    ax.fill_between([left, 0], [left / NEARLY_OFF, 0], 0, color=NEUTRAL, alpha=0.15, linewidth=0)
    for offset in (NEARLY_OFF, *RAYS):
        reach = top if offset == 0 else min(top, (left if offset < 0 else right) / offset)
        ax.plot([0, offset * reach], [0, reach], color=NEUTRAL, linewidth=0.6, alpha=0.6, zorder=0.5)
        where, side = (0.97 * offset * reach, 0.97 * reach), "left" if offset < 0 else "right"
        ax.text(*where, f" s = {number(round(offset, 1))} ", color=NEUTRAL, fontsize=8, ha=side, va="bottom")
    ax.set_xlim(left, right)
    ax.set_ylim(0, top)
    ax.text(left, 0.02 * top, " Gaussian: active < 1 %", color=NEUTRAL, fontsize=8, ha="left", va="bottom")
    lost = len(gathered.table) - len(values)
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    parts = []
    for name, _, table in gathered.each():
        wide = _wide(table)
        inside = wide["mean"] < NEARLY_OFF * wide["std"]
        parts.append((name, int(inside.sum()), len(wide)))
    if not np.isfinite(gathered.table["value"]).any():
        return "No channel has a finite place on the map"
    if not any(inside for _, inside, _ in parts):
        return "No channel stands in the dead region"
    if len(parts) == 1:
        return f"{parts[0][1]} of {parts[0][2]} channels stand in the dead region"
    worst = sorted(parts, key=lambda part: -part[1] / part[2])
    said = [f"{label(name, 24)} ({inside} of {total})" for name, inside, total in worst[:3] if inside]
    rest = "" if sum(inside > 0 for _, inside, _ in parts) > 3 else "; no other run has any"
    return f"In the dead region: {', '.join(said)}{rest if len(said) < len(parts) else ''}"
