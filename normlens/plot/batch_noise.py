"""batch_noise: how far off are the means of batches and the running means? One row for each batch norm."""

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

__all__ = ["batch_noise", "batch_noise_data"]

KINDS = {"statistic_error": "o", "running_mean_gap": "D"}
BESIDE = ("values_per_channel", "effective_values", "mean_noise", "std_noise", "running_gap_floor")


def batch_noise(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    r"""Draw the errors of channel means at the last step, in units of the channels' deviation (log axis).

    Of a training batch (disk, with one standard error) and of the running statistics (diamond). With a single run, the
    thin stroke is :math:`1/\sqrt M`, the error of a batch whose M values per channel are independent: a disk to its
    right says that positions are correlated.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a batch norm that the probe ``batch_noise`` has measured.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    alone = len(gathered.runs) == 1
    if alone:
        counts = gathered.table.groupby("layer")["values_per_channel"].first()
        ticks(ax, layers, {str(layer): count**-0.5 for layer, count in counts.items() if count > 0})
    log_marks(ax, gathered, layers, KINDS)
    layer_axis(ax, layers)
    ax.set_xlabel("error of the mean / σ:  ● batch   ◇ running" + ("   | independent" if alone else ""))
    if not alone:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="batch statistics")
    return ax


def batch_noise_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers, a row for each run, layer and kind, of each run's last step.

    Columns: run, step, layer, name (statistic_error, running_mean_gap), value, error, and of the layer
    values_per_channel, effective_values, mean_noise, std_noise, running_gap_floor.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a batch norm that the probe ``batch_noise`` has measured.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "batch_noise", *KINDS)
    last = rows[rows["step"] == rows["step"].max()]
    every = run.frame("batch_noise")
    every = every[(every["step"] == rows["step"].max()) & every["name"].isin(BESIDE)]
    beside = every.pivot_table(index="layer", columns="name", values="value", dropna=False).reindex(columns=BESIDE)
    table: pd.DataFrame = last[["step", "layer", "name", "value", "error"]].join(beside, on="layer")
    return table.reset_index(drop=True)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[(gathered.table["name"] == "statistic_error") & np.isfinite(gathered.table["value"])]
    if table.empty:
        return "The noise of the batch statistics is not finite in any layer"
    worst = table.loc[table["value"].idxmax()]
    percent = f"{number(100 * worst['value'])} % of σ"
    if len(gathered.runs) > 1:
        return f"Noisiest batch mean: {label(worst['run'], 24)}, {label(worst['layer'], 28)} ({percent})"
    few = worst["effective_values"] < 0.5 * worst["values_per_channel"]
    which = f"{worst['effective_values']:.0f} of its {worst['values_per_channel']:.0f} values count"
    return f"A batch's mean is off by up to {percent}, in {label(worst['layer'], 28)}" + (f": {which}" if few else "")
