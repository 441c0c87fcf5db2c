"""dead_channels: since when are channels dead? Their number in the whole network against optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normlens.plot.canvas import curve, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, title
from normlens.run.store import Run

__all__ = ["dead_channels", "dead_channels_data"]


def dead_channels(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the channels that were off for every sample (solid) and for 99 % of them or more (dotted), all layers.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has counts of the probe ``elimination``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    lines = {}
    for name, color, table in gathered.each():
        curve(ax, table["step"].to_numpy(float), table["near_dead"].to_numpy(float), color=color, style=":")
        lines[name] = curve(ax, table["step"].to_numpy(float), table["dead"].to_numpy(float), color=color)
    ax.set_ylabel("channels:  — dead  ··· ≥ 99 % off")
    ax.set_ylim(-0.02 * ax.get_ylim()[1], max(1.0, ax.get_ylim()[1]))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    step_axis(ax)
    name_runs(ax, lines)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="elimination")
    return ax


def dead_channels_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, dead, near_dead, channels (counts over all layers measured).

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has counts of the probe ``elimination``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    select(run, "elimination", "dead")
    rows = select(run, "elimination", "dead", "near_dead", "channels")
    totals = rows.groupby(["step", "name"])["value"].sum().unstack("name")
    return totals.reindex(columns=["dead", "near_dead", "channels"]).reset_index().rename_axis(columns=None)


def _answer(gathered: Gathered) -> str:
    last = gathered.table.groupby("run", sort=False).last()
    dead = last[last["dead"] > 0].sort_values("dead", ascending=False)
    if dead.empty:
        return f"No channel is dead at step {last['step'].max()}"
    name, row = dead.index[0], dead.iloc[0]
    table = gathered.table[gathered.table["run"] == name]
    since = table.loc[table["dead"] > 0, "step"].min()
    who = "" if len(last) == 1 else f"{label(name, 24)}: "
    of = "" if pd.isna(row["channels"]) else f" of {row['channels']:.0f}"
    return f"{who}{row['dead']:.0f}{of} channels dead, the first by step {since}"
