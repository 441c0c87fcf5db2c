"""activation_drift: do the layers' inputs drift? Layer by step, relative to what a fresh batch would show anyway."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm

from normlens.plot.canvas import figure_of, layer_axis, new_axes, note, step_axis, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select, with_room
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["activation_drift", "activation_drift_data"]

LEAST = 8.0  # the color scale reaches at least this far: what is near the floor stays pale
MANY = 2000  # cells; so many become one picture inside an SVG, which would else weigh megabytes
WIDEST = 64.0  # the color scale ends here: a drift of more floors than that is drawn as that many


Measure = Literal["mean_shift", "log_scale", "kl", "w1", "ks"]
Since = Literal["first", "previous", "since"]

IN_WORDS = {"mean_shift": "", "log_scale": " in scale", "kl": " as Gaussians", "w1": " in distribution (W1)",
            "ks": " in distribution (KS)"}  # fmt: skip
SINCE_WHEN = {"first": "", "previous": " since the last measurement", "since": " since the chosen step"}
ON_THE_BAR = {"mean_shift": "shift", "log_scale": "change of scale", "kl": "KL", "w1": "W1", "ks": "KS"}


def activation_drift(
    runs: Run | Mapping[str, Run],
    ax: Axes | None = None,
    *,
    measure: Measure = "mean_shift",
    since: Since = "first",
) -> Axes:
    """Draw how far the input of each layer has moved since the first measurement, in units of its null floor.

    Color: the drift over its floor, e.g. ``mean_shift_first / mean_shift_floor``, on a log scale centered at one, where
    the floor is the 99 % point of what a fresh batch of the same size shows without any drift. Hatched cells are at or
    below it: not significant. A cross marks a ratio that is not finite, an empty cell one that was not measured.
    Several runs stand side by side with one color scale.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.
        measure: of the means, the scales, the Gaussians (kl) or the whole distributions (w1: earth mover's distance in
            standard deviations, ks: largest gap between the distribution functions).
        since: the first or the previous measurement, or that at the probe's own ``since``.

    Raises:
        NotRecordedError: no run has two measurements of the probe ``activation_drift``, with that measure.
    """
    every = gather(runs, partial(_read, measure=measure, since=since))
    gathered, layers = with_room(every), layer_order(every)
    ax = new_axes(ax, len(layers))
    ax.set_axis_off()
    panels = _panels(ax, len(gathered.runs))
    reach = _reach(gathered)
    for panel, (name, color, table) in zip(panels, gathered.each(), strict=True):
        dress(panel, grid="")
        mesh = _heat_map(panel, table, layers, reach)
        layer_axis(panel, layers, limit=28 if len(panels) < 3 else 20)
        if len(panels) > 1:
            panel.set_title(label(name, max(12, 48 // len(panels))), fontsize=9, color=color)
    for place, panel in enumerate(panels):
        panel.tick_params(labelleft=place == 0)
        panel.xaxis.label.set_visible(place == (len(panels) - 1) // 2)  # one for all; more of them would overlap
    _color_bar(ax, mesh, reach, ON_THE_BAR[measure])
    words = _answer(every, IN_WORDS[measure] + SINCE_WHEN[since])
    title(ax, words, width=title_width(layers), room_below=len(panels) > 1)
    note(ax, gathered.missing, what="two measurements of activation_drift", crowded=gathered.crowded)
    return ax


def activation_drift_data(
    runs: Run | Mapping[str, Run], *, measure: Measure = "mean_shift", since: Since = "first"
) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, shift, error, floor, ratio, n (dimensionless but n; kl in nats).

    Args:
        runs: one run, or several by name.
        measure: as in the figure.
        since: as in the figure.

    Raises:
        NotRecordedError: no run has two measurements of the probe ``activation_drift``, with that measure.
    """
    return gather(runs, partial(_read, measure=measure, since=since)).table


def _read(run: Run, *, measure: Measure, since: Since) -> pd.DataFrame:
    try:
        shift = select(run, "activation_drift", f"{measure}_{since}")
        floor = select(run, "activation_drift", f"{measure}_floor")
    except NotRecordedError as error:
        raise NotRecordedError(f"{error} (a drift needs two measurements of 'activation_drift')") from error
    keys = ["step", "layer"]
    table = shift[[*keys, "value", "error", "n"]].rename(columns={"value": "shift"})
    table = table.merge(floor[[*keys, "value"]].rename(columns={"value": "floor"}), on=keys, how="left")
    with np.errstate(divide="ignore", invalid="ignore"):
        table["ratio"] = table["shift"].to_numpy(float) / table["floor"].to_numpy(float)
    return table[[*keys, "shift", "error", "floor", "ratio", "n"]]


def _panels(ax: Axes, count: int) -> list[Axes]:
    gap = 0.02
    width = (0.95 - gap * (count - 1)) / count
    return [ax.inset_axes((i * (width + gap), 0, width, 1)) for i in range(count)]


def _reach(gathered: Gathered) -> float:
    """How far the color scale goes on either side of one: the largest ratio, within sane bounds."""
    ratios = gathered.table["ratio"].to_numpy(float)
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.clip(ratios.max(), LEAST, WIDEST)) if ratios.size else LEAST


def _heat_map(ax: Axes, table: pd.DataFrame, layers: list[str], reach: float) -> QuadMesh:
    import seaborn

    grid = table.pivot_table(index="layer", columns="step", values="ratio", dropna=False).reindex(layers)
    measured = table.assign(there=1).pivot_table(index="layer", columns="step", values="there").reindex(layers)
    steps = grid.columns.to_numpy(float)
    ratios = grid.to_numpy(float)
    edges = _edges(steps)
    floored = np.where(ratios == 0, 1 / reach, ratios)  # no shift at all has no logarithm: the lowest color
    shown = np.ma.masked_invalid(floored)
    colors = seaborn.color_palette("vlag", as_cmap=True)
    mesh = ax.pcolormesh(edges, np.arange(len(layers) + 1) - 0.5, shown, norm=LogNorm(1 / reach, reach), cmap=colors)
    mesh.set_rasterized(ratios.size > MANY)
    for row, values in enumerate(ratios):
        quiet = [(edges[i], edges[i + 1] - edges[i]) for i in np.flatnonzero(values <= 1)]
        if quiet:
            ax.broken_barh(quiet, (row - 0.5, 1), facecolor="none", edgecolor=NEUTRAL, hatch="////", linewidth=0)
    rows, columns = np.nonzero(~np.isfinite(ratios) & (measured.to_numpy(float) > 0))
    ax.plot(steps[columns], rows, "x", color=NEUTRAL, markersize=5)
    step_axis(ax)
    return mesh


def _edges(steps: np.ndarray) -> np.ndarray:
    """Cell borders half way between the steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0] - (middle[0] - steps[0])], middle, [steps[-1] + (steps[-1] - middle[-1])]])


def _color_bar(ax: Axes, mesh: QuadMesh, reach: float, what: str) -> None:
    bar = figure_of(ax).colorbar(mesh, cax=ax.inset_axes((0.97, 0, 0.02, 1)))
    ticks = [t for t in (1 / 64, 1 / 16, 1 / 4, 1, 4, 16, 64) if 1 / reach <= t <= reach]
    names = {1 / 64: "1/64", 1 / 16: "1/16", 1 / 4: "1/4", 1: "floor"}
    bar.set_ticks(ticks, labels=[names.get(t, f"{t:.0f}×") for t in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(colors=NEUTRAL, labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label(f"{what} ÷ null floor (hatched: ≤ 1)", color=NEUTRAL, fontsize=8)


def _answer(gathered: Gathered, how: str) -> str:
    table = gathered.table
    broken = table[np.isnan(table["ratio"])].sort_values("step", kind="stable")
    if len(broken):
        first = broken.iloc[0]
        who = "" if len(gathered.runs) == 1 else f"{label(first['run'], 24)}: "
        return f"{who}The drift of {label(first['layer'] or '(network)', 28)} is NaN from step {first['step']}"
    last = table[table["step"] == table.groupby("run")["step"].transform("max")]
    beyond = last[last["ratio"] > 1]
    if beyond.empty:
        return f"No layer's input has drifted{how} beyond the null floor"
    worst = beyond.iloc[int(np.argmax(beyond["ratio"]))]
    far = f"{label(worst['layer'] or '(network)', 28)} by {number(worst['ratio'])} floors"
    if len(gathered.runs) == 1:
        return f"{len(beyond)} of {len(last)} layers' inputs have drifted{how}; most {far}"
    return f"Most drift{how}: {label(worst['run'], 24)}, {far}"
