"""self_normalization: which layers let a gain of their weights through to the outputs? One mark for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["self_normalization", "self_normalization_data"]

INVARIANT = 0.01
"""Below this sensitivity a layer is called self-normalizing: it takes 99 % of a gain away."""


def self_normalization(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the relative change of the outputs over the gain, for each layer with weights at the last step.

    Dimensionless. 0 (line): the layer's gain is normalized away; 1 (line): it goes through in full.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a sensitivity of the probe ``self_normalization``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    for reference in (0, 1):
        ax.axvline(reference, color=NEUTRAL, linewidth=0.8)
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        known = table[np.isfinite(table["value"])]
        ax.plot(known["value"], [rows[layer] + shift for layer in known["layer"]], "o", color=color, markersize=5)
    layer_axis(ax, layers)
    _leave_room(ax, gathered)
    ax.set_xlabel("change of the outputs / gain of the layer's weights")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="self_normalization")
    return ax


def self_normalization_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, value (the sensitivity), n; at each last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a sensitivity of the probe ``self_normalization``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "self_normalization", "gain_sensitivity")
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    return last[["step", "layer", "value", "n"]].reset_index(drop=True)


def _leave_room(ax: Axes, gathered: Gathered) -> None:
    values = gathered.table["value"]
    finite = values[np.isfinite(values)]
    widest = max(float(finite.max()) if len(finite) else 0.0, 1.0)
    ax.set_xlim(-0.05 * widest, 1.08 * widest)
    lost = len(values) - len(finite)
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    table = gathered.table[np.isfinite(gathered.table["value"])]
    if table.empty:
        return "The sensitivity is not finite in any layer"
    own = gathered.table["value"] < INVARIANT  # what is not a number is not normalized away
    counts = gathered.table.assign(own=own).groupby("run", sort=False)["own"].agg(["sum", "size"])
    if len(gathered.runs) == 1:
        normalizing, of = counts.iloc[0]
        worst = table.loc[table["value"].idxmax()]
        most = f"; most sensitive: {label(worst['layer'] or '(network)', 28)} ({number(worst['value'])})"
        return f"{normalizing} of {of} layers normalize their own gain away{most}"
    said = [f"{label(name, 24)} {row['sum']} of {row['size']}" for name, row in counts.iloc[:4].iterrows()]
    said = [words.replace(" ", "\N{NO-BREAK SPACE}") for words in said]  # a count stays with its name
    return f"Layers that normalize their own gain away: {', '.join(said)}" + (" …" if len(counts) > 4 else "")
