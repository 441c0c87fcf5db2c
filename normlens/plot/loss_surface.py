"""loss_surface: how does the loss look around the parameters? Along a line or in a plane through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize

from normlens.plot.canvas import curve, figure_of, log_axis, name_runs, new_axes, note
from normlens.plot.collect import Gathered, gather, with_room
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["loss_surface", "loss_surface_data"]

LEVELS = 9  # contour lines between the least and the largest loss

AXES = {
    "": ("first direction", "second direction"),
    "random": ("first random direction", "second random direction"),
    "eigenvectors": ("first eigenvector", "second eigenvector"),
    "update": ("last update (1: another one)", "gradient across it"),
}
"""What the probe's directions are called, in the order of its codes after the unknown one."""

STATISTICS = ("", "running statistics", "batch statistics", "mixed statistics")

Plane: TypeAlias = tuple[str, str, pd.DataFrame]


def loss_surface(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the loss around the parameters at the last step it was measured: lines, or planes side by side.

    The axes count lengths of the directions, and 0 (the cross) is the network itself. Planes have one color scale,
    logarithmic where every loss is positive, with contour lines; cells that were not computed stay empty.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a loss of the probe ``loss_surface``.
    """
    every = gather(runs, read)
    gathered = with_room(every) if every.table["y"].notna().any() else every  # lines share a panel
    planes, lines = _planes(gathered), _lines(gathered)
    ax = new_axes(ax)
    panels = _panels(ax, len(planes) + bool(lines)) if planes else [ax]
    if lines:
        _draw_lines(panels.pop(0), lines, axis_names(gathered)[0])
    if planes:
        _draw_planes(ax, panels, planes, gathered)
    title(ax, answer(every), room_below=bool(planes) and len(gathered.runs) > 1)
    note(ax, gathered.missing, what="loss_surface", crowded=gathered.crowded)
    return ax


def loss_surface_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, x, y (nan for a line), value, directions, statistics, n; each last.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a loss of the probe ``loss_surface``.
    """
    return gather(runs, read).table


def read(run: Run) -> pd.DataFrame:
    """Return the last surface of a run that holds one, a row for each point of the grid.

    Raises:
        NotRecordedError: it holds none.
    """
    frame = run.frame("loss_surface")
    for step in reversed(run.steps("loss_surface")):
        try:
            found = run.array("loss_surface", "loss", step=step)
        except NotRecordedError:
            continue
        x, *rest = found.coords.values()
        across, along = np.meshgrid(x, rest[0] if rest else [np.nan], indexing="ij")
        cells = {"x": across.ravel(), "y": along.ravel(), "value": found.values.ravel().astype(float)}
        there = frame[frame["step"] == step]
        words = {
            "directions": _word(there, "directions", tuple(AXES)[1:]),
            "statistics": _word(there, "statistics", STATISTICS),
        }
        return pd.DataFrame({"step": step, **cells, **words, "n": int(there["n"].max()) if len(there) else 0})
    raise NotRecordedError(f"{run.name}: probe 'loss_surface' has read no loss")


def _word(rows: pd.DataFrame, name: str, words: tuple[str, ...]) -> str:
    """Return what a code that the probe recorded stands for; empty where it recorded none."""
    codes = rows.loc[rows["name"] == name, "value"]
    known = len(codes) == 1 and codes.iloc[0] in range(len(words))
    return words[int(codes.iloc[0])] if known else ""


def _planes(gathered: Gathered) -> list[Plane]:
    return [(name, color, rows) for name, color, rows in gathered.each() if rows["y"].notna().any()]


def _lines(gathered: Gathered) -> list[Plane]:
    return [(name, color, rows) for name, color, rows in gathered.each() if rows["y"].isna().all()]


def axis_names(gathered: Gathered) -> tuple[str, str]:
    """Return what the axes are called: of the directions, where all runs have the same."""
    kinds = gathered.table["directions"].unique()
    return AXES[kinds[0] if len(kinds) == 1 else ""]


def _loss_words(table: pd.DataFrame) -> str:
    """Return "loss" with its statistics and sample size where all planes agree in them."""
    sizes = [f"n = {n}" if n else "" for n in table["n"].unique()]
    said = [fact[0] for fact in (list(table["statistics"].unique()), sizes) if len(fact) == 1 and fact[0]]
    return "loss" + (f" ({', '.join(said)})" if said else "")


def _panels(ax: Axes, count: int) -> list[Axes]:
    ax.set_axis_off()
    gap = 0.04
    width = (0.94 - gap * (count - 1)) / count
    return [ax.inset_axes((i * (width + gap), 0, width, 1)) for i in range(count)]


def _draw_lines(ax: Axes, runs: list[Plane], across: str) -> None:
    dress(ax)
    drawn = {}
    for name, color, rows in runs:
        drawn[name] = curve(ax, rows["x"].to_numpy(float), rows["value"].to_numpy(float), color=color)
    values = pd.concat([rows["value"] for _, _, rows in runs]).to_numpy(float)
    if isinstance(scale_of(values), LogNorm):
        log_axis(ax)
    ax.axvline(0, color=NEUTRAL, linewidth=0.8)
    ax.set_xlabel(across)
    ax.set_ylabel("loss")
    name_runs(ax, drawn)


def _draw_planes(ax: Axes, panels: list[Axes], runs: list[Plane], gathered: Gathered) -> None:
    values = pd.concat([rows["value"] for _, _, rows in runs]).to_numpy(float)
    scale = scale_of(values)
    across, along = axis_names(gathered)
    same = len({(rows["y"].min(), rows["y"].max()) for _, _, rows in runs}) == 1
    for place, (panel, (name, color, rows)) in enumerate(zip(panels, runs, strict=True)):
        mesh = _draw_plane(panel, rows, color, scale)
        panel.set_xlabel(across)
        panel.set_ylabel(along if place == 0 else "")
        panel.tick_params(labelleft=place == 0 or not same)
        panel.xaxis.label.set_visible(place == (len(panels) - 1) // 2)  # one for all; more of them would overlap
        if len(gathered.runs) > 1:
            panel.set_title(label(name, max(10, 48 // len(panels))), fontsize=9, color=color)
    bar = figure_of(ax).colorbar(mesh, cax=ax.inset_axes((0.97, 0, 0.02, 1)))
    bar.ax.tick_params(which="both", colors=NEUTRAL, labelsize=8)
    bar.set_label(_loss_words(gathered.table), color=NEUTRAL)
    bar.outline.set_visible(False)


def _draw_plane(ax: Axes, rows: pd.DataFrame, color: str, scale: Normalize) -> QuadMesh:
    dress(ax, grid="")
    x, y, z = grid_of(rows)
    shown = np.ma.masked_invalid(z)
    mesh = ax.pcolormesh(x, y, shown, cmap="viridis", norm=scale, shading="nearest", rasterized=True)
    if min(z.shape) > 1 and shown.count() > 3 and shown.max() > shown.min():
        ax.contour(x, y, shown, levels=_levels(scale), colors="white", linewidths=0.6, alpha=0.7)
    ax.plot(0, 0, "+", color=color, markersize=9, markeredgewidth=2)
    return mesh


def grid_of(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x (X,), y (Y,) and the loss (Y, X)."""
    grid = rows.pivot(index="y", columns="x", values="value")
    return grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy(float)


def scale_of(values: np.ndarray) -> Normalize:
    """Return the color scale of losses: logarithmic where all are positive and span more than a decade."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high if high > low else low + 1)


def _levels(scale: Normalize) -> np.ndarray:
    return np.asarray(scale.inverse(np.linspace(0, 1, LEVELS + 2)[1:-1]), dtype=float)


def answer(gathered: Gathered) -> str:
    """Return the title: from where to where the loss rises, or around which runs it does least and most."""
    said = [(name, rows, *_ends(rows)) for name, _, rows in gathered.each()]
    if len(said) == 1:
        _, rows, center, highest = said[0]
        return f"Around step {rows['step'].iloc[0]} the loss rises from {number(center)} to at most {number(highest)}"
    known = [(highest - center, name) for name, _, center, highest in said if not np.isnan(highest - center)]
    if not known:
        return "The loss is not a number in the middle of any run's surface"
    (low, flattest), (high, steepest) = min(known), max(known)
    return f"The loss rises least around {label(flattest, 24)} (by {number(low)}), most around {label(steepest, 24)} "\
           f"(by {number(high)})"  # fmt: skip


def _ends(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the loss nearest to the center and the largest finite one."""
    distance = rows["x"] ** 2 + rows["y"].fillna(0) ** 2
    finite = rows.loc[np.isfinite(rows["value"]), "value"]
    return float(rows["value"].iloc[int(np.argmin(distance))]), float(finite.max()) if len(finite) else float("nan")
