"""fisher_vector: in which layers is one Gaussian, which is what batch norm assumes, not enough?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.style import NEUTRAL, dress, label, title
from normlens.run.store import Run

__all__ = ["fisher_vector", "fisher_vector_data"]

KINDS = {"mixed": "D", "multimodal": "o"}


def fisher_vector(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw each layer's share of channels with several modes (disk) and with more than one Gaussian (diamond).

    Of the last step, dimensionless. What lies between diamond and disk are skewed and heavy-tailed channels, and modes
    that overlap. Numbers beside the axes: channels with several modes, where one run leaves the room for them.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has the modes of a layer from the probe ``fisher_vector``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    rows = {layer: row for row, layer in enumerate(layers)}
    for position, (_, color, table) in enumerate(gathered.each()):
        shift = 0.6 * ((position + 0.5) / len(gathered.runs) - 0.5)
        for kind, marker in KINDS.items():
            values = table[(table["name"] == kind) & np.isfinite(table["value"])]
            y = [rows[layer] + shift for layer in values["layer"]]
            face = color if kind == "multimodal" else "none"
            # A disk within a diamond: where both shares are the same, both are seen.
            size = 4 if kind == "multimodal" else 8
            ax.plot(values["value"], y, marker, color=color, markersize=size, markerfacecolor=face, clip_on=False)
    layer_axis(ax, layers)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the channels:  ● several modes   ◇ more than one Gaussian")
    _count(ax, gathered, rows)
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="fisher_vector")
    return ax


def fisher_vector_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, name (mixed, multimodal), value (the share), channels, n.

    Of each run's last step; ``channels`` are those whose density is known.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has the modes of a layer from the probe ``fisher_vector``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "fisher_vector", *KINDS)
    every = select(run, "fisher_vector", *KINDS, "channels", "unknown")
    counts = every.pivot_table(index=["step", "layer"], columns="name", values="value", aggfunc="last")
    counts = counts.reindex(columns=["channels", "unknown"])
    known = (counts["channels"] - counts["unknown"].fillna(0)).rename("channels").reset_index()
    last: pd.DataFrame = rows[rows["step"] == rows["step"].max()]
    table = last[["step", "layer", "name", "value", "n"]].merge(known, on=["step", "layer"], how="left")
    return table[["step", "layer", "name", "value", "channels", "n"]].reset_index(drop=True)


def _count(ax: Axes, gathered: Gathered, rows: Mapping[str, int]) -> None:
    """Write the numbers behind the shares of a single run, and how many shares cannot be drawn."""
    lost = int((~np.isfinite(gathered.table["value"])).sum())
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)
    if len(gathered.runs) > 1:
        return
    for layer, several, of in _numbers(gathered.table).itertuples(index=False):
        if several:
            shown = ax.text(1.02, rows[layer], f"{several} of {of}", transform=ax.get_yaxis_transform())
            shown.set(va="center", fontsize=8, color=NEUTRAL)


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many channels of each layer have several modes, and of how many."""
    known = table[(table["name"] == "multimodal") & np.isfinite(table["value"]) & np.isfinite(table["channels"])]
    several = (known["value"] * known["channels"]).round().astype(int)
    return pd.DataFrame({"layer": known["layer"], "several": several, "of": known["channels"].astype(int)})


def _answer(gathered: Gathered) -> str:
    counts = {name: _numbers(table) for name, _, table in gathered.each()}
    if not sum(len(found) for found in counts.values()):
        return "The channels' distributions are not finite in any layer"
    if len(counts) == 1:
        (found,) = counts.values()
        worst = found.iloc[int(np.argmax(found["several"] / found["of"].clip(lower=1)))]
        if not worst["several"]:
            return f"None of {found['of'].sum()} channels has several modes"
        said = f"{label(worst['layer'] or '(network)', 28)}: {worst['several']} of {worst['of']} channels"
        rest = found["several"].sum() - worst["several"]
        return f"{said} have several modes" + (f"; {rest} in the other layers" if len(found) > 1 else "")
    shown = list(counts.items())[:4]
    totals = [f"{label(name, 24)}: {found['several'].sum()} of {found['of'].sum()}" for name, found in shown]
    joined = "; ".join(words.replace(" ", "\N{NO-BREAK SPACE}") for words in totals)  # a count stays with its name
    return f"Channels with several modes, {joined}" + (" …" if len(counts) > 4 else "")
