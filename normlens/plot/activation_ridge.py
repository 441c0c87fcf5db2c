"""activation_ridge: how does the distribution of a layer's inputs change while the network learns?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normlens.plot.canvas import new_axes, note
from normlens.plot.collect import Gathered, gather, layer_order, named, select, with_room
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["activation_ridge", "activation_ridge_data"]

PROBE = "activation_drift"
RIDGES = 12  # steps that are drawn at most, evenly spaced
PANELS = 4
REACH = float(np.arcsinh(2.0**11))  # of the bins, in asinh of a value over its scale
TAIL = 0.004  # of the values on either side may lie beyond the x axis
OVERLAP = 2.2  # the highest ridge covers this many of the steps behind it


def activation_ridge(runs: Run | Mapping[str, Run], ax: Axes | None = None, *, layer: str | None = None) -> Axes:
    """Draw the distribution of all values that enter a layer, one ridge for each step, the first one on top.

    Areas are equal to the share of values that are not exactly zero; the share that is stands at the right end of each
    ridge, where there are any. With one run each layer has a panel, up to the four that drifted most; with several each
    run has one, for the layer that drifted most in any, over the same axis.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.
        layer: show this layer alone.

    Raises:
        NotRecordedError: no run has a distribution of the probe ``activation_drift``, or none of this layer.
    """
    every = _gather(runs, layer)
    gathered = with_room(every)
    ax = new_axes(ax)
    ax.set_axis_off()
    shown = list(_panels_of(gathered))
    width = (1 - 0.03 * (len(shown) - 1)) / len(shown)
    common = _window(gathered.table) if len(gathered.runs) > 1 else None
    for place, (name, color, table) in enumerate(shown):
        panel = ax.inset_axes((place * (width + 0.03), 0, width, 1))
        _ridges(panel, table, color, common or _window(table))
        panel.tick_params(labelleft=place == 0)
        if len(shown) > 1:
            panel.set_title(label(name or "(network)", max(12, 56 // len(shown))), fontsize=9, color=color)
        if place == 0:
            panel.set_ylabel("optimizer steps, downwards")
        if place == (len(shown) - 1) // 2:  # one for all
            panel.set_xlabel("value of the layer's input")
    title(ax, _answer(every), room_below=len(shown) > 1)
    note(ax, gathered.missing, what=PROBE, crowded=gathered.crowded)
    return ax


def activation_ridge_data(runs: Run | Mapping[str, Run], *, layer: str | None = None) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, value (middle of a bin), share, density, zeros, nonfinite, n.

    Values are in the units of the activations, densities per unit; the shares of the bins and ``zeros`` add up to one,
    that of what is ``nonfinite`` is of all values. Of many steps and layers, those that the figure shows.

    Args:
        runs: one run, or several by name.
        layer: this layer alone.

    Raises:
        NotRecordedError: no run has a distribution of the probe ``activation_drift``, or none of this layer.
    """
    return _gather(runs, layer).table


def _gather(runs: Run | Mapping[str, Run], layer: str | None) -> Gathered:
    """Read the layers that are to be shown: of several runs one, of a single one four."""
    every = named(runs)
    chosen = _most_drifted(every) if layer is None and len(every) > 1 else layer
    return gather(runs, lambda run: _read(run, chosen))


def _most_drifted(runs: Mapping[str, Run]) -> str | None:
    """Return the layer with the largest last drift of any run, or the first layer, or None where there is none."""
    tables = []
    for run in runs.values():
        try:
            tables.append(_last_drift(run))
        except NotRecordedError:
            continue
    if not tables:
        return None
    table = pd.concat(tables, ignore_index=True)
    return str(table["layer"].iloc[int(np.argmax(table["value"].fillna(-1.0)))])


def _last_drift(run: Run) -> pd.DataFrame:
    """Return how far each layer has moved at the last step; 0 for all at the first measurement."""
    layers = pd.DataFrame({"layer": select(run, PROBE, "histogram")["layer"].unique(), "value": 0.0})
    try:
        drift = select(run, PROBE, "w1_first")
    except NotRecordedError:
        return layers
    last: pd.DataFrame = drift[drift["step"] == drift["step"].max()]
    return last[["layer", "value"]]


def _read(run: Run, layer: str | None) -> pd.DataFrame:
    rows = select(run, PROBE, "histogram")
    about = select(run, PROBE, "histogram_scale", "zeros", "nonfinite")
    known = about.pivot_table(index=["step", "layer"], columns="name", values="value").to_dict("index")
    layers = _foremost(run, list(dict.fromkeys(rows["layer"]))) if layer is None else [layer]
    if layer is not None and not (rows["layer"] == layer).any():
        names = ", ".join(dict.fromkeys(rows["layer"]))
        raise NotRecordedError(f"{run.name}: {PROBE!r} has no distribution of layer {layer!r}; it has: {names}")
    steps = np.unique(rows["step"])
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(RIDGES, len(steps))).round().astype(int))]
    rows = rows[rows["layer"].isin(layers) & rows["step"].isin(steps)]
    each = rows.groupby(["step", "layer"], sort=False)
    return pd.concat([_densities(part, known[key]) for key, part in each], ignore_index=True)


def _foremost(run: Run, layers: list[str]) -> list[str]:
    """Return the four layers that drifted most, in the order they came in."""
    drift = _last_drift(run).set_index("layer")["value"].fillna(np.inf)
    most = sorted(layers, key=lambda name: -float(drift.get(name, 0.0)))[:PANELS]
    return [name for name in layers if name in most]


def _densities(part: pd.DataFrame, about: Mapping[Any, float]) -> pd.DataFrame:
    """Turn the shares of one layer's bins at one step into densities."""
    shares = part["value"].to_numpy(float)
    edges = about["histogram_scale"] * np.sinh(np.linspace(-REACH, REACH, len(shares) + 1))
    return pd.DataFrame({
        "step": part["step"].to_numpy(), "layer": part["layer"].to_numpy(), "value": (edges[1:] + edges[:-1]) / 2,
        "share": shares, "density": shares / np.diff(edges), "zeros": about["zeros"],
        "nonfinite": about["nonfinite"], "n": part["n"].to_numpy(),
    })  # fmt: skip


def _panels_of(gathered: Gathered) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield name, color and table of each panel: the layers of one run, or one layer of several runs."""
    for name, color, table in gathered.each():
        if len(gathered.runs) > 1:
            yield name, color, table
        else:
            for layer in layer_order(gathered):
                yield layer, color, table[table["layer"] == layer]


def _ridges(ax: Axes, table: pd.DataFrame, color: str, window: tuple[float, float]) -> None:
    """Draw one ridge for each step, over a base line of its own; later ones cover earlier ones and are stronger."""
    dress(ax, grid="")
    ax.spines["left"].set_visible(False)
    steps = np.unique(table["step"])
    inside = table[table["value"].between(*window)]
    highest = float(inside["density"].max()) if len(inside) else 0.0
    unit = OVERLAP / highest if highest > 0 else 1.0
    for row, step in enumerate(steps):
        ridge = table[table["step"] == step]
        x, y = ridge["value"].to_numpy(float), row - unit * ridge["density"].to_numpy(float)
        strength = 1.0 if len(steps) == 1 else 0.35 + 0.65 * row / (len(steps) - 1)
        ax.fill_between(x, y, row, color=color, alpha=0.25 * strength, linewidth=0, zorder=2 + row)
        ax.plot(x, y, color=color, alpha=strength, linewidth=1.0, zorder=2 + row)
        zeros = float(ridge["zeros"].iloc[0])
        if zeros > 0:
            text = f"{100 * zeros:.0f} % zeros" if row == 0 else f"{100 * zeros:.0f} %"
            ax.text(0.995, row - 0.08, text, transform=ax.get_yaxis_transform(), ha="right", va="bottom",
                    color=NEUTRAL, fontsize=7, zorder=40)  # fmt: skip
    ax.set_yticks(range(len(steps)), [str(int(step)) for step in steps], fontsize=8)
    ax.set_ylim(len(steps) - 0.5, -OVERLAP - 0.1)
    ax.set_xlim(*window)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.tick_params(axis="y", length=0)


def _window(table: pd.DataFrame) -> tuple[float, float]:
    """Return a range of values that leaves out next to nothing at any step."""
    ends: list[tuple[float, float]] = []
    for _, ridge in table.groupby(["run", "step", "layer"]):
        values, below = ridge["value"].to_numpy(float), np.cumsum(ridge["share"].to_numpy(float))
        if below[-1] > 0:
            inner = np.searchsorted(below / below[-1], [TAIL, 1 - TAIL])
            ends.append((values[max(inner[0] - 1, 0)], values[min(inner[1] + 1, len(values) - 1)]))
    if not ends:
        return -1.0, 1.0
    return min(low for low, _ in ends), max(high for _, high in ends)


def _answer(gathered: Gathered) -> str:
    """Say how large the inputs were and are, where that changed most; or that some are no numbers."""
    found = [(name, _sizes(table), table) for name, _, table in _panels_of(gathered)]
    for name, _, table in found:
        lost = table[table["nonfinite"] > 0]
        if len(lost):
            first = lost.iloc[int(np.argmin(lost["step"]))]
            where = "" if len(gathered.runs) == 1 else f" of {_layer(first)}"
            share = f"{number(100 * float(first['nonfinite']))} %"
            return f"{share} of the inputs{where} in {label(name, 28)} are not finite at step {first['step']}"
    name, (before, after), table = max(found, key=lambda one: _change(*one[1]))
    steps = np.unique(table["step"])
    which = f"Inputs of {_layer(table.iloc[0])}" + (f" in {label(name, 24)}" if len(gathered.runs) > 1 else "")
    if len(steps) == 1:
        return f"{which}: rms {number(before)} at step {steps[0]}"
    return f"{which}: rms {number(before)} at step {steps[0]}, {number(after)} at step {steps[-1]}"


def _layer(row: pd.Series) -> str:
    return label(row["layer"] or "(network)", 28)


def _sizes(table: pd.DataFrame) -> tuple[float, float]:
    """Return the root mean square of the values at the first and at the last step, zeros among them."""
    squares = (table["share"] * table["value"] ** 2).groupby(table["step"]).sum()
    return float(np.sqrt(squares.iloc[0])), float(np.sqrt(squares.iloc[-1]))


def _change(before: float, after: float) -> float:
    return abs(float(np.log(after / before))) if before > 0 and after > 0 else 0.0
