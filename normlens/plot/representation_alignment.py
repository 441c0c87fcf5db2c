"""representation_alignment: could the targets be reached along the gradients? Residual of alignment against steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, number, title
from normlens.run.store import Run

__all__ = ["representation_alignment", "representation_alignment_data"]

COLUMNS = ["run", "step", "name", "value", "rank", "rows", "n"]
RESIDUALS = {"residual_last": ":", "residual": "-"}
RANKS = {"residual_last": ("rank_last", "rows_last"), "residual": ("rank", "rows")}
ALIGNED = 1e-6
"""Below this residual the targets count as reachable (the paper's condition holds in float64)."""


def representation_alignment(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the share of the targets outside of the range of the Jacobian.

    By all parameters (solid, disk) and by the last layer's (dotted, circle). Dimensionless: 0 where the
    data-architecture alignment condition holds (Kawaguchi et al., 2022), 1 where no parameter moves the outputs towards
    the targets.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a residual of the probe ``representation_alignment``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    lines = {}
    for name, color, table in gathered.each():
        for kind, style in RESIDUALS.items():
            rows = table[table["name"] == kind]
            if not len(rows):
                continue
            lines[name] = curve(ax, *(rows[c].to_numpy(float) for c in ("step", "value")), color=color, style=style)
            if kind == "residual_last":  # a single step is a point, which has no style of a line
                lines[name].set_markerfacecolor("none")
    kinds = set(gathered.table["name"])
    both = "residual:  — ● all parameters  ··· ○ last layer"
    one = "residual, all parameters" if "residual" in kinds else "residual, last layer"
    ax.set_ylabel(both if len(kinds) > 1 else one)
    top = 1.05 * max(0.1, _highest(gathered))
    ax.set_ylim(-0.03 * top, top)
    step_axis(ax)
    name_runs(ax, lines)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="representation_alignment")
    return ax


def representation_alignment_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (residual, residual_last), value, rank, rows (of J), n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a residual of the probe ``representation_alignment``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    table = select(run, "representation_alignment", *RESIDUALS)
    frame = run.frame("representation_alignment")
    numbers = frame.set_index(["step", "name"])["value"].to_dict()
    keys = list(zip(table["step"], table["name"], strict=True))
    for place, column in enumerate(("rank", "rows")):
        table[column] = [numbers.get((step, RANKS[name][place]), np.nan) for step, name in keys]
    return table


def _highest(gathered: Gathered) -> float:
    values = gathered.table["value"].to_numpy(float)
    return float(np.max(values[np.isfinite(values)], initial=0.0))


def _answer(gathered: Gathered) -> str:
    last = {name: _last(table) for name, _, table in gathered.each()}
    known = {name: row for name, row in last.items() if row is not None}
    if not known:
        return "The residual is not a number"
    if len(gathered.runs) == 1:
        (row,) = known.values()
        of = "" if np.isnan(row["rank"]) else f"; rank {row['rank']:.0f} of {row['rows']:.0f}"
        if row["value"] < ALIGNED:
            return f"Every target can be reached to first order{of}"
        return f"{number(100 * row['value'])} % of the targets are out of reach{of}"
    low, high = (pick(known, key=lambda name: known[name]["value"]) for pick in (min, max))
    if known[high]["value"] < ALIGNED:
        return "Every target can be reached to first order, in every run"
    said = (f"{label(name, 24)} ({number(100 * max(known[name]['value'], 0.0))} %)" for name in (low, high))
    return "Targets out of reach: least {}, most {}".format(*said)


def _last(table: pd.DataFrame) -> dict[str, float] | None:
    """Return the last finite row of the whole Jacobian, or of the last layer where there is no other."""
    for kind in reversed(RESIDUALS):
        rows = table[(table["name"] == kind) & np.isfinite(table["value"])]
        if len(rows):
            return {name: float(rows[name].iloc[-1]) for name in ("value", "rank", "rows")}
    return None
