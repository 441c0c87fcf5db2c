"""What figures draw in common: lines with bands, names at their ends, layers down the side, notes below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform
from numpy.typing import NDArray

from normlens.plot.style import NEUTRAL, label, shorten

__all__ = [
    "curve", "figure_of", "figure_size", "growing", "insets", "layer_axis", "legend", "log_axis", "name_runs",
    "new_axes", "note", "settle_note", "stack", "step_axis", "title_width",
]  # fmt: skip

Floats: TypeAlias = NDArray[np.float64]

STEPS = "optimizer steps"
_NOTE_LETTERS = 84  # of 8 points, in a figure of 6.4 inches beside the names of the layers
_NOTE = "_note"  # the label of the text that names the runs that are left out
_GROWING = "_growing"  # the label of figures that may become higher
_ROW = 15 / 72  # inches of a legend's row
DIRECT = "_direct"  # the label of texts that name a line at its end, so that an overview can take them off again


def figure_size(layers: int = 0) -> tuple[float, float]:
    """Return width and height in inches: 6.4 x 4, and higher where more layers than that holds must stay readable."""
    return 6.4, max(4.0, 1.2 + 0.17 * layers)


def figure_of(ax: Axes) -> Figure | SubFigure:
    """Return the figure, or the part of one, that the axes stand in.

    Raises:
        ValueError: they stand in none.
    """
    figure = ax.get_figure()
    if figure is None:
        raise ValueError("the axes belong to no figure (they were removed); pass axes of a living figure, or none")
    return figure


def growing(figure: Figure | SubFigure, grows: bool) -> None:
    """Say whether a figure may become higher than it was made, where a long legend needs the room.

    Args:
        figure: one that holds nothing else; someone else's stays as it is.
        grows: whether it may.
    """
    figure.set_label(_GROWING if grows else "")


def _make_room(ax: Axes, rows: int) -> None:
    """Make a figure of ours higher for the rows of a legend that four runs do not have."""
    figure = figure_of(ax)
    if isinstance(figure, Figure) and figure.get_label() == _GROWING:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + _ROW * max(rows - 2, 0))


def new_axes(ax: Axes | None, layers: int = 0) -> Axes:
    """Return ``ax``, or the axes of a new pyplot figure, transparent and with constrained layout."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    figure, made = plt.subplots(figsize=figure_size(layers), layout="constrained")
    figure.patch.set_alpha(0.0)
    growing(figure, True)
    return made


def stack(ax: Axes, heights: Sequence[float]) -> list[Axes]:
    """Return axes inside ``ax``, one below the other with a common x axis; a single one is ``ax`` itself."""
    if len(heights) == 1:
        return [ax]
    ax.set_axis_off()
    gap = 0.08
    unit = (1 - gap * (len(heights) - 1)) / sum(heights)
    panels: list[Axes] = []
    top = 1.0
    for height in heights:
        share = panels[0] if panels else None
        panels.append(ax.inset_axes((0, top - height * unit, 1, height * unit), sharex=share))
        top -= height * unit + gap
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    return panels


def step_axis(ax: Axes) -> None:
    """Label the x axis, with whole numbers only."""
    ax.set_xlabel(STEPS)
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 2.5, 5, 10]))


def insets(ax: Axes) -> list[Axes]:
    """Return the axes that stand inside ``ax``."""
    return [child for child in ax.child_axes if isinstance(child, Axes)]


def log_axis(ax: Axes) -> None:
    """Make the y axis logarithmic: ticks at decades, and where there are fewer than two at 2 and 5 between them."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 100:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def curve(ax: Axes, x: Floats, y: Floats, *, color: str, error: Floats | None = None, style: str = "-") -> Line2D:
    """Draw a line with its error band; what is not finite leaves a gap, and a cross at the edge (−inf: below)."""
    shown = np.where(np.isfinite(y), y, np.nan)
    marker = "o" if np.isfinite(y).sum() == 1 else ""  # a line through one point would be invisible
    (line,) = ax.plot(x, shown, style, color=color, linewidth=1.6, marker=marker, markersize=4)
    if error is not None and np.isfinite(error).any():
        width = np.where(np.isfinite(error), error, 0.0)
        ax.fill_between(x, shown - width, shown + width, color=color, alpha=0.2, linewidth=0)
    bad = ~np.isfinite(y)
    if bad.any():
        _mark_non_finite(ax, x[bad], y[bad], color)
    return line


def _mark_non_finite(ax: Axes, x: Floats, y: Floats, color: str) -> None:
    height = np.where(np.isneginf(y), 0.03, 0.97)
    crosses: dict[str, Any] = {"marker": "x", "markersize": 5, "linestyle": "none"}
    ax.plot(x, height, color=color, transform=ax.get_xaxis_transform(), **crosses)
    if not any(text.get_text() == "× not finite" for text in ax.texts):
        ax.text(0.99, 0.9, "× not finite", transform=ax.transAxes, ha="right", va="top", color=NEUTRAL, fontsize=9)


def name_runs(ax: Axes, lines: Mapping[str, Line2D], *, host: Axes | None = None) -> None:
    """Name up to four lines at their ends; more of them in a legend below; a single one not at all."""
    if len(lines) > 4:
        legend(host or ax, {name: str(line.get_color()) for name, line in lines.items()})
    if not 2 <= len(lines) <= 4:
        return
    ax.get_ylim()  # settles the limits that the transformation below depends on
    to_axes = ax.transScale + ax.transLimits
    ends = {name: to_axes.transform(_last_point(line))[1] for name, line in lines.items()}
    for name, height in _spread(ends, gap=0.3 / _height_inches(ax)).items():
        text = ax.text(1.01, height, label(name, 24), transform=ax.transAxes, va="center", fontsize=9, label=DIRECT)
        text.set_color(lines[name].get_color())


def legend(ax: Axes, colors: Mapping[str, str]) -> None:
    """Put the names of the runs below the axes, a square of the run's color before each."""
    names = [label(name) for name in colors]
    _make_room(ax, -(-len(names) // _columns(names)))
    handles = [Line2D([], [], color=color, marker="s", linestyle="none") for color in colors.values()]
    ax.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=_below(ax, 34 + _label_height(ax)),
        ncols=_columns(names),
        frameon=False,
        labelcolor=NEUTRAL,
        fontsize=9,
        borderaxespad=0,
    )


def note(ax: Axes, missing: Sequence[str], *, what: str, crowded: Sequence[str] = ()) -> None:
    """Name below the axes the runs that are not in the figure, so that none is absent in silence."""
    reasons = {f"without {what}": missing, "for want of room": crowded}
    told = [f"{why}: {_some(names)}" for why, names in reasons.items() if names]
    if not told:
        return
    words = f"not shown, {'; '.join(told)}"
    ax.text(0, 0, words, transform=ax.transAxes, va="top", color=NEUTRAL, fontsize=8, label=_NOTE)
    settle_note(ax, _NOTE_LETTERS)


def _some(names: Sequence[str]) -> str:
    return ", ".join(label(name, 24) for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def settle_note(ax: Axes, letters: int) -> None:
    """Put the note below what stands below the axes: again, after the label of the x axis or the legend changed.

    Args:
        ax: as :func:`note` had them.
        letters: in a line at most; a longer one would make the layout squeeze the axes.
    """
    shown = ax.get_legend()
    named = [] if shown is None else [text.get_text() for text in shown.get_texts()]
    rows = -(-len(named) // _columns(named))
    for text in [text for text in ax.texts if text.get_label() == _NOTE]:
        text.set_text(fill(" ".join(text.get_text().split()), letters, break_long_words=False, break_on_hyphens=False))
        text.set_transform(_below(ax, 36 + _label_height(ax) + 15 * rows))


def layer_axis(ax: Axes, layers: Sequence[str], *, limit: int = 28) -> None:
    """Put the layers down the y axis, the input on top; where there is no room for all, every second, third, or so."""
    room = max(2.0, _height_inches(ax) * 72 / 9)  # a name of 8 points needs 9 points of height
    every = int(np.ceil(len(layers) / room))
    rows = range(0, len(layers), every)
    ax.set_yticks(rows, [label(layers[row] or "(network)", limit) for row in rows], fontsize=8)
    ax.set_ylim(len(layers) - 0.5, -0.5)


def title_width(layers: Sequence[str]) -> int:
    """Return the characters that fit into a title's line beside the names of the layers."""
    longest = max((len(shorten(layer, 28)) for layer in layers), default=0)
    return 66 - int(0.8 * max(longest, 5))


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend: long names stand below each other."""
    return 2 if max(map(len, names), default=0) <= 26 else 1


def _label_height(ax: Axes) -> float:
    """Points that the further lines of the x label take."""
    return 1.25 * float(ax.xaxis.label.get_fontsize()) * ax.get_xlabel().count("\n")


def _below(ax: Axes, points: float) -> Transform:
    return ax.transAxes + ScaledTranslation(0, -points / 72, figure_of(ax).dpi_scale_trans)


def _height_inches(ax: Axes) -> float:
    return float(max(ax.get_window_extent().height / figure_of(ax).dpi, 0.1))


def _last_point(line: Line2D) -> tuple[float, float]:
    x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
    finite = np.flatnonzero(np.isfinite(y))
    return (x[finite[-1]], y[finite[-1]]) if finite.size else (np.nan, np.nan)


def _spread(heights: Mapping[str, float], *, gap: float) -> dict[str, float]:
    """Move labels apart until neighbors are ``gap`` away from each other, keeping their order."""
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    order = sorted(heights, key=lambda name: np.nan_to_num(heights[name], nan=1.0))
    placed = np.array([np.nan_to_num(heights[name], nan=1.0) for name in order])
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed[-1] = min(placed[-1], 1.0)
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    return dict(zip(order, placed.tolist(), strict=True))
