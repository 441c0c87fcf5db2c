"""singularity: how many directions of each layer's weights are invisible to the Fisher matrix, and how many must be?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, title
from normlens.run.store import Run

__all__ = ["singularity", "singularity_data"]

KINDS = ("nullity", "predicted", "regular", "forced")
MARKERS = {"nullity": "o", "predicted": "D", "regular": "|"}


def singularity(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the null directions of each hidden layer's block of the Fisher matrix at the last step.

    For each layer and run: a disk at the nullity, a diamond at what its singular units predict, a tick at what it would
    be without any, and a pale bar over what too few samples force.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a nullity of the probe ``singularity``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        for _, row in table[table["name"] == "forced"].iterrows():
            height = rows[row["layer"]] + shift
            ax.plot([0, row["value"]], [height, height], color=color, alpha=0.3, linewidth=5, solid_capstyle="butt")
        for kind, marker in MARKERS.items():
            values = table[table["name"] == kind]
            y = [rows[layer] + shift for layer in values["layer"]]
            face = color if kind == "nullity" else "none"
            size = {"nullity": 4.5, "predicted": 8, "regular": 9}[kind]
            ax.plot(values["value"], y, marker, color=color, markerfacecolor=face, markersize=size)
    layer_axis(ax, layers)
    ax.set_xlim(*_limits(gathered.table["value"]))
    ax.set_xlabel("null directions:  ● found   ◇ predicted   | if no unit were singular\n(pale: forced by few samples)")
    _sizes(ax, gathered, rows)
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="singularity")
    return ax


def singularity_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, name, value, parameters, units, channels; of each last step.

    ``name`` is nullity, predicted, regular or forced.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a nullity of the probe ``singularity``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    every = select(run, "singularity", *KINDS, "parameters", "units", "channels")
    last = every[every["step"] == every["step"].max()]
    rows = last.loc[last["name"].isin(KINDS), ["step", "layer", "name", "value"]]
    for what in ("parameters", "units", "channels"):
        sizes = last[last["name"] == what].set_index("layer")["value"]
        rows[what] = rows["layer"].map(sizes)
    return pd.DataFrame(rows.reset_index(drop=True))


def _limits(values: pd.Series) -> tuple[float, float]:
    widest = max(float(np.nanmax(values)), 1.0)
    return -0.03 * widest, 1.06 * widest


def _sizes(ax: Axes, gathered: Gathered, rows: Mapping[str, int]) -> None:
    """Write the size of each block at its right end, where a single run leaves the room for it."""
    if len(gathered.runs) > 1:
        return
    for _, row in gathered.table[gathered.table["name"] == "nullity"].iterrows():
        words = f"of {row['parameters']:.0f}\n({row['units']:.0f}/{row['channels']:.0f} units)"
        shown = ax.text(1.01, rows[row["layer"]], words, transform=ax.get_yaxis_transform())
        shown.set(va="center", fontsize=8, color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    wide = gathered.table.pivot_table(
        index=["run", "layer", "parameters"], columns="name", values="value", sort=False
    ).reset_index()
    expected = wide["forced"] if "regular" not in wide else wide["regular"].fillna(wide["forced"])
    wide["excess"] = wide["nullity"] - np.maximum(expected, wide["forced"])
    worst = wide.iloc[int(np.argmax(wide["excess"] / wide["parameters"]))]
    if worst["excess"] <= 0:
        return "No layer is more singular than its structure and samples make it"
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    place = f"{who}{label(worst['layer'] or '(network)', 28)}"
    return f"{place}: {worst['excess']:.0f} of {worst['parameters']:.0f} directions avoidably null"
