"""mutual_information_matrix: which channels tell of which others, before the gates of a dropout and behind them?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import MaxNLocator

from normlens.plot.canvas import figure_of, new_axes, note
from normlens.plot.collect import Gathered, gather, with_room
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["mutual_information_matrix", "mutual_information_matrix_data"]


def mutual_information_matrix(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the information of all pairs of channels at the last step, of the first layer that has it, in nats.

    Above the diagonal before the gates, below it behind them. Several runs stand side by side with one color scale.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a matrix of the probe ``mutual_information``, which has to be asked for.
    """
    every = gather(runs, _read)
    gathered = with_room(every)
    ax = new_axes(ax)
    ax.set_axis_off()
    values = gathered.table["value"].to_numpy(float)
    finite = values[np.isfinite(values)]
    widest = max(float(finite.max()) if finite.size else 0.0, 1e-3)
    count = len(gathered.runs)
    width = (0.93 - 0.03 * (count - 1)) / count
    for place, (name, color, rows) in enumerate(gathered.each()):
        panel = ax.inset_axes((place * (width + 0.03), 0, width, 1))
        mesh = _triangles(panel, rows, color, widest)
        panel.tick_params(labelleft=place == 0)
        layer = label(rows["layer"].iloc[0], max(8, 40 // count))
        panel.set_title(f"{label(name, max(8, 40 // count))}\n{layer}" if count > 1 else layer, fontsize=9, color=color)
        panel.set_xlabel("channel" if place == (count - 1) // 2 else "")
    bar = figure_of(ax).colorbar(mesh, cax=ax.inset_axes((0.96, 0.1, 0.02, 0.8)))
    bar.ax.tick_params(which="both", colors=NEUTRAL, labelsize=8)
    bar.set_label("nats", color=NEUTRAL)
    bar.outline.set_visible(False)
    title(ax, _answer(every), room_below=True)
    note(ax, gathered.missing, what="a matrix of mutual_information", crowded=gathered.crowded)
    return ax


def mutual_information_matrix_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, side (before, behind), channel, other, value (nats); each last.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a matrix of the probe ``mutual_information``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    recorded = [layer for layer, name in run.names("mutual_information") if name == "matrix_before"]
    if not recorded:
        raise NotRecordedError(
            f"{run.name}: probe 'mutual_information' has read no matrix; ask for it with matrix='gaussian_copula'"
        )
    step, layer = run.steps("mutual_information")[-1], recorded[0]
    tables = []
    for side, name in (("before", "matrix_before"), ("behind", "matrix_after")):
        matrix = run.array("mutual_information", name, layer=layer, step=step).values.astype(float)
        rows, columns = np.triu_indices(len(matrix), 1)
        found = {"channel": rows, "other": columns, "value": matrix[rows, columns]}
        tables.append(pd.DataFrame({"step": step, "layer": layer, "side": side, **found}))
    return pd.concat(tables, ignore_index=True)


def _triangles(ax: Axes, rows: pd.DataFrame, color: str, widest: float) -> QuadMesh:
    dress(ax, grid="")
    channels = int(rows["other"].max()) + 1 if len(rows) else 1
    grid = np.full((channels, channels), np.nan)
    before, behind = (rows[rows["side"] == side] for side in ("before", "behind"))
    grid[before["channel"], before["other"]] = before["value"]
    grid[behind["other"], behind["channel"]] = behind["value"]
    mesh = ax.pcolormesh(np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=widest)
    mesh.set_rasterized(channels > 40)
    ax.plot([0, channels], [0, channels], color=color, linewidth=1.2)
    ax.set_aspect("equal")
    ax.set_ylim(channels, 0)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.text(0.98, 0.98, "before", transform=ax.transAxes, ha="right", va="top", color="white", fontsize=8)
    ax.text(0.02, 0.02, "behind", transform=ax.transAxes, ha="left", va="bottom", color="white", fontsize=8)
    return mesh


def _answer(gathered: Gathered) -> str:
    finite = gathered.table[np.isfinite(gathered.table["value"])]
    means = finite.groupby(["run", "side"], sort=False)["value"].mean().unstack()
    if means.empty or set(means.columns) != {"before", "behind"}:
        return "The information of the channels is not finite"
    if len(means) == 1:
        (row,) = means.itertuples(index=False)
        return f"Two channels share {number(row.before)} nats in the mean before the gates, {number(row.behind)} behind"
    most = means["behind"].idxmax()
    shared = number(means["behind"].max())
    return f"Behind the gates two channels share up to {shared} nats in the mean, in {label(most, 24)}"
