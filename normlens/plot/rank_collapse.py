"""rank_collapse: over how many directions do the samples spread in each layer? One row for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.layer_marks import log_marks, ticks
from normlens.plot.style import dress, label, number, title
from normlens.run.store import Run

__all__ = ["rank_collapse", "rank_collapse_data"]

KINDS = {"effective_rank_centered": "o", "effective_rank": "D"}
BESIDE = ("width", "mean_share", "orthogonality_gap", "soft_rank")


def rank_collapse(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    r"""Draw the effective rank of each layer's representations at the last step (dimensionless, log axis).

    Of the samples about their mean (disk, with one standard error) and with it (diamond): 1 where all lie on a line.
    The thin stroke is the largest possible, min(samples, width).

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a rank of the probe ``rank_collapse``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    log_marks(ax, gathered, layers, KINDS)
    most = {str(layer): float(value) for layer, value in gathered.table.groupby("layer")["largest"].max().items()}
    ticks(ax, layers, most)
    high = max([value for value in most.values() if np.isfinite(value)], default=1.0)
    ax.set_xlim(0.8, 1.3 * max(high, 1.0))
    layer_axis(ax, layers)
    ax.set_xlabel("effective rank:  ● about the mean   ◇ with it   | largest")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="rank_collapse")
    return ax


def rank_collapse_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers, a row for each run, layer and kind, of each run's last step.

    Columns: run, step, layer, name (effective_rank_centered, effective_rank), value, error, n, and of the layer width,
    mean_share, orthogonality_gap, soft_rank and largest (the rank that samples and width allow).

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a rank of the probe ``rank_collapse``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "rank_collapse", *KINDS)
    last = rows[rows["step"] == rows["step"].max()]
    every = run.frame("rank_collapse")
    every = every[(every["step"] == rows["step"].max()) & every["name"].isin(BESIDE)]
    beside = every.pivot_table(index="layer", columns="name", values="value", dropna=False).reindex(columns=BESIDE)
    table: pd.DataFrame = last[["step", "layer", "name", "value", "error", "n"]].join(beside, on="layer")
    table["largest"] = np.minimum(table["n"], table["width"])
    return table.reset_index(drop=True)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[np.isfinite(gathered.table["value"])]
    found = table[table["name"] == "effective_rank_centered"]
    if found.empty:
        return "The rank is not finite in any layer"
    worst = found.loc[found["value"].idxmin()]
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    spread = f"{number(worst['value'])} of {worst['largest']:.0f} directions"
    return f"Narrowest: {who}{label(worst['layer'], 28)}, where samples spread over {spread}"
