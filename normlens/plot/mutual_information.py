"""mutual_information: what do pairs of values tell of each other before the gates of a dropout, and behind them?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import legend, new_axes, note
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["mutual_information", "mutual_information_data"]

KINDS = {"across": ("", "o"), "within": ("within_", "D")}
"""Two channels at one position, neighbors within one channel: prefix of the readings, and marker."""

SIDES = ("before", "after")


def mutual_information(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw each pair's information behind the gates against that before them, in nats, at the last step.

    Disks are pairs of channels, diamonds neighbors within a channel. The slanted lines are keep squared; the thin
    vertical one is the level that pairs stay below that tell nothing of each other.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a pair of the probe ``mutual_information``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    for _, color, table in gathered.each():
        for kind, (_, marker) in KINDS.items():
            rows = table[(table["kind"] == kind) & np.isfinite(table["before"]) & np.isfinite(table["value"])]
            face = color if kind == "across" else "none"
            ax.plot(rows["before"], rows["value"], marker, color=color, markerfacecolor=face, markersize=4, alpha=0.7)
    _laws(ax, gathered.table)
    kinds = set(gathered.table["kind"])
    told = "   ● two channels   ◇ neighbors in a channel" if "within" in kinds else ""
    ax.set_xlabel(f"information before the gates (nats){told}")
    ax.set_ylabel("behind them (nats)")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="mutual_information")
    return ax


def mutual_information_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, layer, kind, pair, before, value (behind), keep, null; of each last step.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a pair of the probe ``mutual_information``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "mutual_information", *(f"{prefix}{side}" for prefix, _ in KINDS.values() for side in SIDES))
    step = rows["step"].max()
    rows = rows[rows["step"] == step]
    settings = select(run, "mutual_information", "keep_prob", "null")
    settings = settings[settings["step"] == step].pivot_table("value", "layer", "name", sort=False, dropna=False)
    tables = []
    for kind, (prefix, _) in KINDS.items():
        before, after = (rows[rows["name"] == f"{prefix}{side}"].reset_index(drop=True) for side in SIDES)
        found = before[["step", "layer", "unit"]].rename(columns={"unit": "pair"})
        tables.append(found.assign(kind=kind, before=before["value"], value=after["value"]))
    table = pd.concat(tables, ignore_index=True)
    for column, name in (("keep", "keep_prob"), ("null", "null")):
        known = settings[name] if name in settings else pd.Series(dtype=float)
        table[column] = table["layer"].map(known)
    columns = ["step", "layer", "kind", "pair", "before", "value", "keep", "null"]
    return pd.DataFrame(table[columns])


def _laws(ax: Axes, table: pd.DataFrame) -> None:
    """The lines of keep squared, the level of no dependence, and zero within the axes."""
    finite = table[np.isfinite(table["before"]) & np.isfinite(table["value"])]
    widest = max(float(finite["before"].max()) if len(finite) else 0.0, 0.05)
    for keep in sorted(table["keep"].dropna().unique()):
        ax.plot([0, widest], [0, keep**2 * widest], color=NEUTRAL, linewidth=0.8)
        where = (widest, keep**2 * widest)
        words = f"keep² = {number(keep**2)}"
        ax.annotate(words, where, (3, 0), textcoords="offset points", ha="left", va="center", color=NEUTRAL, fontsize=8)
    ax.set_xlim(right=1.2 * widest)  # room for the words
    null = table["null"].max()
    if np.isfinite(null):
        ax.axvline(null, color=NEUTRAL, linewidth=0.8, linestyle=":")
        place = ax.get_xaxis_transform()
        ax.text(
            null, 0.98, " no dependence", transform=place, rotation=90, ha="left", va="top", color=NEUTRAL, fontsize=8
        )
    lost = len(table) - len(finite)
    if lost:
        ax.text(0.99, 0.02, f"× {lost} not finite", transform=ax.transAxes, ha="right", color=NEUTRAL, fontsize=9)


def _answer(gathered: Gathered) -> str:
    """Compare sums: of the ratios of single pairs those with a small denominator say nothing."""
    table = gathered.table[(gathered.table["kind"] == "across") & np.isfinite(gathered.table["value"])]
    table = table[np.isfinite(table["before"])]
    if table.empty or not table["before"].sum() > 0:
        return "Nothing is known of the information that channels share"
    left = {name: rows["value"].sum() / rows["before"].sum() for name, rows in table.groupby("run", sort=False)}
    if len(left) == 1:
        keeps = sorted({number(keep**2) for keep in table["keep"].dropna()})
        law = f" (keep² = {keeps[0]})" if len(keeps) == 1 else ""
        return f"Of what channels tell of each other the gates leave {number(100 * next(iter(left.values())))} %{law}"
    low, high = min(left, key=left.__getitem__), max(left, key=left.__getitem__)
    return (f"Of what channels tell of each other the gates leave {number(100 * left[low])} % in {label(low, 24)}, "
            f"{number(100 * left[high])} % in {label(high, 24)}")  # fmt: skip
