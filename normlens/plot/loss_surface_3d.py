"""loss_surface_3d: the planes through the loss as surfaces in three dimensions, to remember rather than to measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator

from normlens.plot.canvas import new_axes, note
from normlens.plot.collect import gather, with_room
from normlens.plot.loss_surface import answer, axis_names, grid_of, read, scale_of
from normlens.plot.style import NEUTRAL, label, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["loss_surface_3d", "loss_surface_3d_data"]


def loss_surface_3d(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the planes of :func:`normlens.plot.loss_surface` as surfaces, all with one scale of height and color.

    Where the colors of the contours are logarithmic, so is the height here. The cross is the network itself.

    Args:
        runs: one run, or several by name.
        ax: flat axes in whose place the surfaces stand; None makes a new figure.

    Raises:
        NotRecordedError: no run has a plane of the probe ``loss_surface``.
    """
    every = gather(runs, _read)
    gathered = with_room(every)
    ax = new_axes(ax)
    ax.set_axis_off()
    scale = scale_of(gathered.table["value"].to_numpy(float))
    words = (*axis_names(gathered), "loss")
    for box, (name, color, rows) in zip(_boxes(len(gathered.runs)), gathered.each(), strict=True):
        with mpl.rc_context(
            {"grid.color": f"{NEUTRAL}50"}
        ):  # there is no other way to a faint grid in three dimensions
            solid: Any = ax.inset_axes(box, projection="3d")
        _draw(solid, rows, color, scale)
        _dress(solid, words, scale)
        if len(gathered.runs) > 1:
            solid.set_title(label(name, 32), fontsize=9, color=color, pad=-4)
    title(ax, answer(every), room_below=len(gathered.runs) > 1)
    note(ax, gathered.missing, what="a plane of loss_surface", crowded=gathered.crowded)
    return ax


def loss_surface_3d_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the numbers of the figure, in the columns of :func:`normlens.plot.loss_surface_data`.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a plane of the probe ``loss_surface``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    table = read(run)
    if table["y"].isna().any():
        raise NotRecordedError(f"{run.name}: probe 'loss_surface' has read a line, and no plane; see plot.loss_surface")
    return table


def _boxes(count: int) -> list[tuple[float, float, float, float]]:
    """Return the places of so many surfaces, in rows of two, from five on of three."""
    columns = min(count, 2 if count < 5 else 3)
    lines = -(-count // columns)
    return [((i % columns) / columns, 1 - (i // columns + 1) / lines, 1 / columns, 1 / lines) for i in range(count)]


def _draw(ax: Any, rows: pd.DataFrame, color: str, scale: Normalize) -> None:
    """Draw one surface; ``ax`` are axes of three dimensions, for which matplotlib has no types."""
    x, y, z = grid_of(rows)
    across, along = np.meshgrid(x, y)
    shown = np.where(np.isfinite(z), z, np.nan)
    faces = mpl.colormaps["viridis"](scale(np.ma.masked_invalid(z)))
    lines = {"edgecolor": "#ffffff60", "linewidth": 0.3, "rstride": 1, "cstride": 1}
    ax.plot_surface(across, along, _height(shown, scale), facecolors=faces, shade=False, **lines)
    middle = shown[len(y) // 2, len(x) // 2]
    center = _height(middle, scale)
    ax.plot([0], [0], [center], "+", color=color, markersize=9, markeredgewidth=2, zorder=10)


def _dress(ax: Any, words: tuple[str, str, str], scale: Normalize) -> None:
    logarithmic = isinstance(scale, LogNorm)
    ax.set_zlim(_height(scale.vmin, scale), _height(scale.vmax, scale))
    ax.zaxis.set_major_locator(MaxNLocator(4, integer=logarithmic))
    ax.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10.0**value if logarithmic else value:g}"))
    for axis, text in zip((ax.xaxis, ax.yaxis, ax.zaxis), words, strict=True):
        axis.set_label_text(text, color=NEUTRAL, fontsize=8)
        axis.set_pane_color((0, 0, 0, 0))
        axis.line.set_color(NEUTRAL)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    ax.zaxis.labelpad = -4
    ax.tick_params(colors=NEUTRAL, labelsize=7, pad=-1)
    ax.patch.set_alpha(0.0)
    ax.view_init(elev=32, azim=-60)


def _height(loss: Any, scale: Normalize) -> Any:
    return np.log10(loss) if isinstance(scale, LogNorm) else loss
