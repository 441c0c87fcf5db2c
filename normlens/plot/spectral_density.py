"""spectral_density: how many directions are flat, and how many curve how much? Density of the Hessian's eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from normlens.plot.canvas import curve, legend, new_axes, note
from normlens.plot.collect import Gathered, gather
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["spectral_density", "spectral_density_data"]

COLUMNS = [
    "run", "step", "eigenvalue", "value", "error", "resolution", "smallest", "largest", "width", "share_flat",
    "share_flat_error", "n",
]  # fmt: skip

DECADES = 7
"""Of the logarithmic axis at most: below them Gaussians that stand for nothing fall off."""

Steps = int | Sequence[int] | None


def spectral_density(
    runs: Run | Mapping[str, Run],
    ax: Axes | None = None,
    *,
    step: Steps = None,
    scale: Literal["log", "linear"] = "log",
) -> Axes:
    """Draw the density of the Hessian's eigenvalues (per unit of eigenvalue), with the spread over the probes as band.

    The gray zone around zero is the resolution: eigenvalues within it are not told from zero. Triangles are the
    smallest and largest Ritz values, between which all mass of the estimate lies. Of several steps the earlier ones
    are paler.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.
        step: one step or several; None for the last at which a run's density was measured.
        scale: of the y axis.

    Raises:
        NotRecordedError: no run has a density of the probe ``hessian_spectrum`` there.
    """
    gathered = gather(runs, partial(_read, step=step))
    ax = new_axes(ax)
    dress(ax)
    several = gathered.table.groupby("run")["step"].nunique().max() > 1
    shown = {}
    for name, color, table in gathered.each():
        steps = list(table["step"].unique())
        for place, at in enumerate(steps, start=1):
            alpha = 0.3 + 0.7 * place / len(steps)
            _draw(ax, table[table["step"] == at], color, alpha)
            shown[f"{name}, step {at}" if several else name] = to_hex((color, alpha), keep_alpha=alpha < 1)
    _scale(ax, gathered.table, scale)
    _resolution(ax, *(float(gathered.table[name].max()) for name in ("resolution", "width")))
    ax.set_xlabel("eigenvalue of the Hessian   (▲ smallest and largest Ritz value)")
    ax.set_ylabel("density of eigenvalues")
    if len(shown) > 1:
        legend(ax, shown)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="a density")
    return ax


def spectral_density_data(runs: Run | Mapping[str, Run], *, step: Steps = None) -> pd.DataFrame:
    """Return the figure's numbers, one row for each run, step and point of the grid.

    Columns: run, step, eigenvalue, value (the density there), error (its standard error over the probes), resolution,
    smallest and largest (Ritz values), width (of the Gaussians), share_flat (of the eigenvalues within the resolution
    of zero) and its error, n.

    Args:
        runs: one run, or several by name.
        step: one step or several; None for the last at which a run's density was measured.

    Raises:
        NotRecordedError: no run has a density of the probe ``hessian_spectrum`` there.
    """
    return gather(runs, partial(_read, step=step)).table[COLUMNS]


def _read(run: Run, step: Steps) -> pd.DataFrame:
    frame = run.frame("hessian_spectrum")
    known = sorted(set(frame.loc[frame["name"] == "density", "step"]))
    if not known:
        raise NotRecordedError(f"{run.name}: probe 'hessian_spectrum' has read no density; set its density_probes")
    wanted = known[-1:] if step is None else [step] if isinstance(step, int) else list(step)
    if absent := sorted(set(wanted) - set(known)):
        raise NotRecordedError(
            f"{run.name}: probe 'hessian_spectrum' has read no density at step {absent[0]}; it has at "
            f"{', '.join(map(str, known))}"
        )
    return pd.concat([_at(run, frame[frame["step"] == at], int(at)) for at in sorted(set(wanted))], ignore_index=True)


def _at(run: Run, rows: pd.DataFrame, step: int) -> pd.DataFrame:
    """Return the density at one step; ``rows`` are all scalars and vectors of that step."""
    found = run.array("hessian_spectrum", "density", step=step)
    ritz = run.array("hessian_spectrum", "ritz", step=step).values
    spread = rows.loc[rows["name"] == "density_stderr", "value"].to_numpy(float)
    scalars = rows[rows["unit"].isna()].set_index("name")
    return pd.DataFrame({
        "step": step,
        "eigenvalue": found.coords["grid"],
        "value": found.values.astype(float),
        "error": spread if spread.size else np.nan,
        "resolution": scalars["value"].get("resolution", np.nan),
        "smallest": float(ritz.min()),
        "largest": float(ritz.max()),
        "width": scalars["value"].get("density_width", np.nan),
        "share_flat": scalars["value"].get("share_flat", np.nan),
        "share_flat_error": scalars["error"].get("share_flat", np.nan),
        "n": int(rows.loc[rows["name"] == "density", "n"].iloc[0]),
    })  # fmt: skip


def _draw(ax: Axes, rows: pd.DataFrame, color: str, alpha: float) -> None:
    x, y, error = (rows[column].to_numpy(float) for column in ("eigenvalue", "value", "error"))
    curve(ax, x, y, error=error, color=color).set_alpha(alpha)
    ends = rows[["smallest", "largest"]].iloc[0].to_numpy(float)
    ax.plot(ends, [0.025, 0.025], "^", color=color, alpha=alpha, markersize=6, transform=ax.get_xaxis_transform())


def _scale(ax: Axes, table: pd.DataFrame, scale: Literal["log", "linear"]) -> None:
    values = table["value"].to_numpy(float)
    top = float(np.nanmax(np.where(np.isfinite(values), values, 0.0), initial=0.0))
    if scale == "linear" or top <= 0:
        ax.set_ylim(0, 1.25 * top or 1.0)
        return
    ax.set_yscale("log")
    positive = values[values > 0]
    ax.set_ylim(max(float(positive.min()), top * 10.0**-DECADES) / 2, 50 * top)  # room for the words above the peak


def _resolution(ax: Axes, resolution: float, width: float) -> None:
    if not resolution > 0:
        return
    ax.axvspan(-resolution, resolution, color=NEUTRAL, alpha=0.3, linewidth=1.2, zorder=0.5)
    smoothed = "" if np.isnan(width) else f"\n(curve smoothed by {number(width)})"
    text = f"within ±{number(resolution)}:\nnot told from zero{smoothed}"
    across = ax.get_xaxis_transform()
    ax.annotate(
        text, (resolution, 0.97), xycoords=across, xytext=(5, 0), textcoords="offset points", va="top", color=NEUTRAL,
        fontsize=8,
    )  # fmt: skip


def _answer(gathered: Gathered) -> str:
    last = {name: rows.iloc[-1] for name, _, rows in gathered.each()}
    if len(last) == 1:
        row = next(iter(last.values()))
        span = f"eigenvalues from {number(row['smallest'])} to {number(row['largest'])}"
        if np.isnan(row["share_flat"]):
            return f"At step {row['step']} the Hessian has {span}"
        return f"At step {row['step']}, {percent(row)} of all directions are flat; {span}"
    known = {name: row for name, row in last.items() if not np.isnan(row["share_flat"])}
    if not known:
        steepest = max(last, key=lambda name: last[name]["largest"])
        return f"The largest eigenvalue is that of {label(steepest, 24)}: {number(last[steepest]['largest'])}"
    most = max(known, key=lambda name: known[name]["share_flat"])
    least = min(known, key=lambda name: known[name]["share_flat"])
    return f"Flat directions: most {label(most, 24)} ({percent(known[most])}), least {label(least, 24)} "\
           f"({percent(known[least])})"  # fmt: skip


def percent(row: pd.Series) -> str:
    """Return the share of eigenvalues that are not told from zero, with its error, in percent."""
    error = "" if np.isnan(row["share_flat_error"]) else f" ± {100 * row['share_flat_error']:.2g}"
    return f"{number(100 * row['share_flat'])}{error} %"
