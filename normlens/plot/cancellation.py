"""cancellation: how much of the gradients cancels? Sums of magnitudes over magnitudes of sums, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.layer_marks import log_marks
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["cancellation", "cancellation_data"]

KINDS = {"cancellation": "o", "within_samples": "D", "across_samples": "s"}


def cancellation(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw at the last step how many times smaller the sum of a weight's gradient is than the sum of its parts.

    Disks: over all samples and places; diamonds: over the places within each sample; squares: over the samples at each
    place. At 1 nothing cancels. Bars are one standard error.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a cancellation of the probe ``cancellation``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    log_marks(ax, gathered, layers, KINDS)
    ax.set_xlim(left=min(0.9, ax.get_xlim()[0]))  # 1 is on the axis: there nothing cancels
    ax.axvline(1, color=NEUTRAL, linewidth=0.8)
    layer_axis(ax, layers)
    ax.set_xlabel("sum of magnitudes / magnitude of the sum:  ● over all\n◇ over places in a sample   □ over samples")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="cancellation")
    return ax


def cancellation_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers of each run's last step: run, step, layer, name, value, error.

    The names are cancellation, within_samples and across_samples, ratios of at least 1.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a cancellation of the probe ``cancellation``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "cancellation", *KINDS)
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last[["step", "layer", "name", "value", "error"]].reset_index(drop=True)


def _answer(gathered: Gathered) -> str:
    table = gathered.table
    known = table[(table["name"] == "cancellation") & np.isfinite(table["value"])]
    if known.empty:
        return "The gradients' parts cancel to nothing, or are not finite, in every layer"
    most = known.loc[known["value"].idxmax()]
    who = "" if len(gathered.runs) == 1 else f"{label(most['run'], 24)}, "
    return f"Most cancels in {who}{label(most['layer'], 28)}: 1 part in {number(most['value'])} is left"
