"""predictive_entropy: how unsure is the network, and how much of that is its own noise? In nats against steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, name_runs, new_axes, note, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import NEUTRAL, dress, label, number, title
from normlens.run.store import Run

__all__ = ["predictive_entropy", "predictive_entropy_data"]

COLUMNS = ["run", "step", "name", "value", "error", "n"]
KINDS = {"mutual_information": ":", "entropy": "-"}


def predictive_entropy(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the entropy of the averaged prediction (solid) and its part that is the network's own noise (dotted).

    In nats, averaged over the probe batch, with bands of one standard error; the gray line is the entropy of a guess.
    The dotted line is at zero where nothing in the network is random.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has an entropy of the probe ``predictive_entropy``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    dress(ax)
    lines = {}
    for name, color, table in gathered.each():
        for kind, style in KINDS.items():
            rows = table[table["name"] == kind]
            x, y, error = (rows[column].to_numpy(float) for column in ("step", "value", "error"))
            lines[name] = curve(ax, x, y, error=error, color=color, style=style)
    _mark_guess(ax, gathered)
    ax.set_ylabel("nats:  — entropy  ··· mutual information")
    ax.set_ylim(bottom=min(0.0, -0.02 * ax.get_ylim()[1]))
    step_axis(ax)
    name_runs(ax, lines)
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="predictive_entropy")
    return ax


def predictive_entropy_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (entropy, mutual_information), value (nats), error, n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has an entropy of the probe ``predictive_entropy``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    select(run, "predictive_entropy", "entropy")
    rows = select(run, "predictive_entropy", *KINDS)
    largest = run.frame("predictive_entropy")
    rows["largest"] = largest.loc[largest["name"] == "largest", "value"].max()
    return rows


def _mark_guess(ax: Axes, gathered: Gathered) -> None:
    """Draw the entropy of a guess where the lines come near it; where all are sure it would only press them down."""
    values = gathered.table["value"].to_numpy(float)
    finite = values[np.isfinite(values)]
    largest = gathered.table["largest"].max()
    if finite.size and np.isfinite(largest) and finite.max() > largest / 2:
        ax.axhline(largest, color=NEUTRAL, linewidth=0.8)
        place = ax.get_yaxis_transform()
        ax.text(0.995, largest, "a guess", transform=place, ha="right", va="bottom", color=NEUTRAL, fontsize=8)


def _answer(gathered: Gathered) -> str:
    said = {}
    for name, _, table in gathered.each():
        last = table[np.isfinite(table["value"])].groupby("name")["value"].last()
        if "entropy" in last:
            said[name] = float(last["entropy"]), float(last.get("mutual_information", 0.0))
    if not said:
        return "The entropy is not a number"
    if len(gathered.runs) == 1:
        ((entropy, noise),) = said.values()
        part = f", {number(noise)} of them its own noise" if noise > 0 else "; nothing in it is random"
        return f"Unsure by {number(entropy)} nats in the end{part}"
    low, high = (pick(said, key=lambda name: said[name][0]) for pick in (min, max))
    lowest, highest = (f"{label(name, 24)}\N{NO-BREAK SPACE}({number(said[name][0])})" for name in (low, high))
    return f"Final entropy in nats: lowest {lowest}, highest {highest}"
