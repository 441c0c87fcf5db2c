"""gradient_flow: does the gradient grow or fade on its way to the input? Its size at each layer, first and last."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.decades import log_x_axis
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["gradient_flow", "gradient_flow_data"]

MARKED = {"first": ("o", "-"), "last": ("D", ":")}


def gradient_flow(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    r"""Draw the mean square of the gradient by each layer's input: first measurement (disks) and last (diamonds).

    The thin dashed line is what the theory of wide networks predicts before training where it knows the network:
    growth by :math:`\pi/(\pi-1) = 1.47` per layer towards the input with batch norm and ReLU, by 1 without the ReLU.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has an energy of the probe ``gradient_flow``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    rows = {layer: row for row, layer in enumerate(layers)}
    for _, color, table in gathered.each():
        for which, (marker, style) in MARKED.items():
            found = table[table["when"] == which]
            if found.empty:  # of one measurement alone
                continue
            shown = found["value"].where(np.isfinite(found["value"]))
            face = color if which == "first" else "none"
            y = np.array([rows[layer] for layer in found["layer"]], dtype=float)
            low = np.maximum(shown - found["error"], shown / 10)  # an error as large as the value
            ax.hlines(y, low, shown + found["error"], color=color, linewidth=2.5, alpha=0.4)
            ax.plot(shown, y, style, marker=marker, color=color, markersize=5, markerfacecolor=face, linewidth=1.2)
        _predict(ax, table[table["when"] == "first"], rows)
    layer_axis(ax, layers)
    _scale(ax, gathered)
    ax.set_xlabel(f"E ‖∂ℓ/∂h‖²:  ● first{'   ◇ last' if (gathered.table['when'] == 'last').any() else ''} measurement")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="gradient_flow")
    return ax


def gradient_flow_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, when (first, last), step, layer, value, error, growth, predicted.

    ``value`` is the mean over the samples of the squared gradient by what enters the layer; ``growth`` that per layer
    towards the input and ``predicted`` what it would be in theory, of the whole network, nan where not known.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has an energy of the probe ``gradient_flow``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "gradient_flow", "energy")
    whole = select(run, "gradient_flow", "energy", "growth", "predicted")
    known = {
        (name, step): value for name, step, value in whole[["name", "step", "value"]].to_numpy() if name != "energy"
    }
    ends = {"first": rows["step"].min(), "last": rows["step"].max()}
    tables: list[pd.DataFrame] = []
    for when, step in ends.items():
        if when == "first" or step > ends["first"]:
            table = rows.loc[rows["step"] == step, ["step", "layer", "value", "error"]].reset_index(drop=True)
            table.insert(0, "when", when)
            for name in ("growth", "predicted"):
                table[name] = float(known.get((name, step), np.nan))
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _predict(ax: Axes, first: pd.DataFrame, rows: Mapping[str, int]) -> None:
    """Draw the predicted growth through the middle of what was measured: the ends are unlike the rest."""
    factor = first["predicted"].iloc[0]
    inner = first.iloc[1:-1] if len(first) > 2 else first
    if not (np.isfinite(factor) and len(inner) and (inner["value"] > 0).all()):
        return
    depth = np.arange(len(first))
    offset = np.log(inner["value"]).mean() + depth[: len(inner)].mean() * np.log(factor)
    start = 1 if len(first) > 2 else 0
    ax.plot(np.exp(offset - (depth - start) * np.log(factor)), [rows[layer] for layer in first["layer"]], "--",
            color=NEUTRAL, linewidth=0.8)  # fmt: skip
    if not any(text.get_text().startswith("predicted") for text in ax.texts):
        ax.text(0.01, 0.98, f"predicted: × {factor:.3g} per layer (dashed)", transform=ax.transAxes, va="top",
                color=NEUTRAL, fontsize=8)  # fmt: skip


def _scale(ax: Axes, gathered: Gathered) -> None:
    values = gathered.table["value"]
    if (values[np.isfinite(values)] > 0).any():
        log_x_axis(ax)
    lost = int((~np.isfinite(values)).sum())
    if lost:
        ax.text(0.99, 0.97, f"× {lost} not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL)


def _answer(gathered: Gathered) -> str:
    said = {name: _growth(table[table["when"] == "first"]) for name, _, table in gathered.each()}
    known = {name: growth for name, growth in said.items() if np.isfinite(growth)}
    if not known:
        return "How the gradient grows from layer to layer is not a number"
    if len(gathered.runs) == 1:
        growth = next(iter(known.values()))
        verb = "grows" if growth >= 1 else "shrinks"
        return f"At first the gradient's square {verb} × {number(growth)} per layer towards the input"
    ends = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    low, high = (f"{label(name, 24)} (× {number(known[name])})" for name in ends)
    return f"Growth of the squared gradient per layer at first: least {low}, most {high}"


def _growth(first: pd.DataFrame) -> float:
    """Return the measured growth, or of few layers that between the first and the last."""
    growth = float(first["growth"].iloc[0])
    if np.isfinite(growth) or len(first) < 2:
        return growth
    ends = first["value"].to_numpy(float)[[0, -1]]
    return float((ends[0] / ends[1]) ** (1 / (len(first) - 1))) if (ends > 0).all() else float("nan")
