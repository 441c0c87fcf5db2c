"""overview: everything that was measured of the runs on one sheet, over the same optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import fill
from typing import TypeAlias

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec
from matplotlib.lines import Line2D

from normlens.plot.activation_condition import activation_condition, activation_condition_data
from normlens.plot.activation_drift import activation_drift, activation_drift_data
from normlens.plot.batch_noise import batch_noise, batch_noise_data
from normlens.plot.cancellation import cancellation, cancellation_data
from normlens.plot.canvas import DIRECT, STEPS, figure_of, growing, insets, settle_note
from normlens.plot.collect import named
from normlens.plot.condition_number import condition_number, condition_number_data
from normlens.plot.covariate_shift import covariate_shift, covariate_shift_data
from normlens.plot.dead_channels import dead_channels, dead_channels_data
from normlens.plot.edge_of_stability import edge_of_stability, edge_of_stability_data
from normlens.plot.elimination import elimination, elimination_data
from normlens.plot.fisher_vector import fisher_vector, fisher_vector_data
from normlens.plot.gradient_flow import gradient_flow, gradient_flow_data
from normlens.plot.gradient_norm import gradient_norm, gradient_norm_data
from normlens.plot.gradient_predictiveness import gradient_predictiveness, gradient_predictiveness_data
from normlens.plot.hessian_spectrum import hessian_spectrum, hessian_spectrum_data
from normlens.plot.information_ratio import information_ratio, information_ratio_data
from normlens.plot.mutual_information import mutual_information, mutual_information_data
from normlens.plot.rank_collapse import rank_collapse, rank_collapse_data
from normlens.plot.singularity import singularity, singularity_data
from normlens.plot.statdiff import statdiff, statdiff_data
from normlens.plot.style import NEUTRAL, label, palette, title
from normlens.plot.training_curve import training_curve, training_curve_data
from normlens.plot.variance_shift import variance_shift, variance_shift_data
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["overview", "overview_data", "overview_size"]

WIDTH = 10.0
"""Inches of the sheet: half of it still has letters of 4.5 points."""

HEIGHT = 3.2
"""Inches of a row of the sheet."""

Figure_: TypeAlias = Callable[[Run | Mapping[str, Run], Axes | None], Axes]

SHEET: tuple[tuple[tuple[Figure_, int], ...], ...] = (
    ((training_curve, 1), (gradient_norm, 1)),
    ((elimination, 1), (dead_channels, 1)),
    ((activation_drift, 3), (statdiff, 2)),
    ((hessian_spectrum, 1), (condition_number, 1), (edge_of_stability, 1)),
    ((gradient_predictiveness, 1), (covariate_shift, 1)),
    ((gradient_flow, 1), (cancellation, 1)),
    ((batch_noise, 1), (variance_shift, 1)),
    ((activation_condition, 1), (rank_collapse, 1)),
    ((singularity, 1), (fisher_vector, 1)),
    ((mutual_information, 1), (information_ratio, 1)),
)
"""The rows of the sheet: figures and their shares of the width."""

TABLES = {
    "training_curve": training_curve_data,
    "gradient_norm": gradient_norm_data,
    "elimination": elimination_data,
    "dead_channels": dead_channels_data,
    "activation_drift": activation_drift_data,
    "statdiff": statdiff_data,
    "hessian_spectrum": hessian_spectrum_data,
    "condition_number": condition_number_data,
    "edge_of_stability": edge_of_stability_data,
    "gradient_predictiveness": gradient_predictiveness_data,
    "covariate_shift": covariate_shift_data,
    "gradient_flow": gradient_flow_data,
    "cancellation": cancellation_data,
    "batch_noise": batch_noise_data,
    "variance_shift": variance_shift_data,
    "activation_condition": activation_condition_data,
    "rank_collapse": rank_collapse_data,
    "singularity": singularity_data,
    "fisher_vector": fisher_vector_data,
    "mutual_information": mutual_information_data,
    "information_ratio": information_ratio_data,
}


def overview(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the sheet: a panel for every figure that has data, one legend above them, the same steps on every x axis.

    ``ax`` itself is emptied; the legend and the panels stand in its place in the figure.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure of :func:`overview_size`.

    Raises:
        NotRecordedError: no run has anything that a panel could show.
    """
    every = _kept(runs)
    rows = _rows(every)
    if not rows:
        names = ", ".join(run.name for run in every.values())
        raise NotRecordedError(f"{names}: no reading of a probe that the overview shows: training_curve, elimination, "
                               "activation_drift; pass them to the lens in probes=")  # fmt: skip
    ax = _sheet(overview_size(every)) if ax is None else ax
    growing(figure_of(ax), False)  # the panels' legends go
    ax.set_axis_off()
    grid = _grid(ax, len(rows))
    _head(figure_of(ax).add_subplot(grid[0]), every)
    panels: list[Axes] = []
    for place, row in enumerate(rows, start=1):
        shares = [share for _, share in row]
        cells = GridSpecFromSubplotSpec(1, len(row), grid[place], width_ratios=shares)
        for column, (figure, share) in enumerate(row):
            panel = figure(every, figure_of(ax).add_subplot(cells[0, column]))
            _rewrap(panel, WIDTH * share / sum(shares) - 1)
            panels.append(panel)
    _unify(panels)
    return ax


def overview_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return what the sheet holds: panel, run and the number of rows in that panel's own table.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has anything that a panel could show.
    """
    every = _kept(runs)
    tables = {name: read(every) for name, read in TABLES.items() if _has(every, read)}
    if not tables:
        raise NotRecordedError(f"{', '.join(run.name for run in every.values())}: no reading that the overview shows")
    counts = [table.groupby("run", sort=False).size().rename("rows").reset_index() for table in tables.values()]
    return pd.concat(counts, keys=tables, names=["panel", None]).reset_index(level="panel").reset_index(drop=True)


def overview_size(runs: Run | Mapping[str, Run]) -> tuple[float, float]:
    """Return the width and height in inches that suit the sheet of these runs: so much for each row that has data.

    Args:
        runs: one run, or several by name.
    """
    return WIDTH, 0.4 + HEIGHT * max(len(_rows(_kept(runs))), 1)


class _Kept(Run):
    """A run whose tables are read once, however many panels ask for them."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.path, recover=run._recover)
        self._tables: dict[str, pd.DataFrame] = {}

    def frame(self, probe: str) -> pd.DataFrame:
        if probe not in self._tables:
            self._tables[probe] = super().frame(probe)
        return self._tables[probe]


def _kept(runs: Run | Mapping[str, Run]) -> dict[str, Run]:
    """Return the runs by name; one that keeps its tables by itself as it is."""
    return {name: _Kept(run) if type(run) is Run else run for name, run in named(runs).items()}


def _rows(runs: Mapping[str, Run]) -> list[list[tuple[Figure_, int]]]:
    """Return the rows of the sheet that have data, with the figures in them that do."""
    rows = [[(figure, share) for figure, share in row if _has(runs, TABLES[figure.__name__])] for row in SHEET]
    return [row for row in rows if row]


def _has(runs: Mapping[str, Run], read: Callable[[Mapping[str, Run]], pd.DataFrame]) -> bool:
    try:
        return not read(runs).empty
    except NotRecordedError:
        return False


def _sheet(size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=size, layout="constrained")
    figure.patch.set_alpha(0.0)
    return ax


def _grid(ax: Axes, rows: int) -> GridSpec | GridSpecFromSubplotSpec:
    """A low row for the names of the runs, and the rows of the sheet, in the place of ``ax``."""
    heights = [0.06, *[1.0] * rows]
    place = ax.get_subplotspec()
    if place is not None:
        return GridSpecFromSubplotSpec(rows + 1, 1, place, height_ratios=heights)
    box = ax.get_position()
    edges = {"left": box.x0, "right": box.x1, "bottom": box.y0, "top": box.y1}
    return GridSpec(rows + 1, 1, hspace=0.6, height_ratios=heights, **edges)


def _rewrap(panel: Axes, inches: float) -> None:
    """Break the title, the labels of the x axes and the note into lines that are as wide as the panel."""
    text = panel.get_title(loc="left")
    letter = 0.073  # inches at 9.5 points
    title(panel, " ".join(text.split()), int(inches / letter), size=9.5, room_below=text.endswith("\n"))
    for axes in (panel, *insets(panel)):
        lines = [fill(line, int(inches / (letter * 8.5 / 9.5))) for line in axes.get_xlabel().split("\n")]
        axes.set_xlabel("\n".join(lines), fontsize=8.5)
        shown = axes.get_legend()
        if shown is not None:
            shown.remove()  # the sheet has one for all
        settle_note(axes, int(inches / (letter * 8 / 9.5)))


def _unify(panels: list[Axes]) -> None:
    """One legend and one range of steps serve all panels: take the panels' own away."""
    every = [axes for panel in panels for axes in (panel, *insets(panel))]
    over_steps = [axes for axes in every if axes.get_xlabel() == STEPS]
    limits = [axes.get_xlim() for axes in over_steps]
    for axes in over_steps:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes in every:
        axes.title.set_fontsize(8)
        for text in [text for text in axes.texts if text.get_label() == DIRECT]:
            text.remove()


def _head(ax: Axes, runs: Mapping[str, Run]) -> None:
    """The legend of the sheet: a square of its color before the name of each run."""
    ax.set_axis_off()
    handles = [Line2D([], [], color=color, marker="s", linestyle="none", markersize=8) for color in palette(len(runs))]
    names = [label(name, 32) for name in runs]
    columns = min(len(names), max(1, 120 // (max(map(len, names)) + 6)))
    ax.legend(handles, names, loc="center left", ncols=columns, frameon=False, labelcolor=NEUTRAL, fontsize=10)
