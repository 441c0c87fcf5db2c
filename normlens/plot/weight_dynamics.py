"""weight_dynamics: how fast do the weights turn? Effective learning rate and angle per step against optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, stack, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, number, title
from normlens.run.store import Run

__all__ = ["weight_dynamics", "weight_dynamics_data"]

COLUMNS = ["run", "step", "name", "value", "lowest", "highest", "layers"]
ANGLES = {"angle_equilibrium": ":", "angle": "-"}


def weight_dynamics(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the effective learning rate ``eta / |w|^2`` above the angle of the last step, medians over the layers.

    Bands reach from the lowest to the highest layer. The dotted line is the angle at which scale-invariant weights
    settle under SGD with weight decay, ``sqrt(2 eta lambda / (1 + momentum))``; it is left out where none is known, and
    the angles' panel where no step was recorded.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has an effective rate of the probe ``weight_dynamics``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    recorded = set(gathered.table["name"])
    panels = stack(ax, (1, 1) if "angle" in recorded else (1,))
    for panel in panels:
        dress(panel)
    _draw(panels[0], gathered, {"effective_rate": "-"}, host=ax)
    panels[0].set_ylabel("rate η / |w|²")
    if "angle" in recorded:
        _draw(panels[1], gathered, ANGLES)
        settled = "\n··· equilibrium" if "angle_equilibrium" in recorded else ""
        panels[1].set_ylabel(f"angle [rad]{settled}")
    step_axis(panels[-1])
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="weight_dynamics")
    return ax


def weight_dynamics_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name, value (median over the layers), lowest, highest, layers (a count).

    The names are effective_rate (of SGD, per squared unit of weight), angle and angle_equilibrium (radians).

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has an effective rate of the probe ``weight_dynamics``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    select(run, "weight_dynamics", "effective_rate")
    rows = select(run, "weight_dynamics", "effective_rate", *ANGLES)
    rows["lost"] = rows["value"].isna()
    layers = rows.groupby(["step", "name"], sort=False)
    table = layers["value"].agg(value="median", lowest="min", highest="max", layers="size")
    lost = layers["lost"].any()
    table.loc[lost, ["value", "lowest", "highest"]] = np.nan  # a median over the layers that are left would hide it
    return table.reset_index()


def _draw(ax: Axes, gathered: Gathered, kinds: Mapping[str, str], host: Axes | None = None) -> None:
    lines = {}
    for name, color, table in gathered.each():
        for kind, style in kinds.items():
            rows = table[table["name"] == kind]
            if not len(rows):
                continue
            x, y, low, high = (rows[column].to_numpy(float) for column in ("step", "value", "lowest", "highest"))
            lines[name] = curve(ax, x, y, color=color, style=style)
            if style == "-":
                ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    values = gathered.table.loc[gathered.table["name"].isin(kinds), "value"]
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
        log_axis(ax)
    if host is not None:
        name_runs(ax, lines, host=host)


def _answer(gathered: Gathered) -> str:
    said = {}
    for name, _, table in gathered.each():
        last = table[np.isfinite(table["value"])].groupby("name").last()["value"]
        if "angle" in last and "angle_equilibrium" in last:
            said[name] = last["angle"] / last["angle_equilibrium"]
    if len(gathered.runs) == 1 and said:
        return f"Weights turn at {number(next(iter(said.values())))} times their equilibrium angle"
    if said:
        low, high = (f"{label(name, 24)} ({number(said[name])})" for name in (_least(said), _most(said)))
        return f"Angle per step over the equilibrium's: lowest {low}, highest {high}"
    return _rates(gathered)


def _rates(gathered: Gathered) -> str:
    rates = gathered.table[gathered.table["name"] == "effective_rate"].dropna(subset="value")
    if rates.empty:
        return "The effective learning rate is not a number"
    last = {str(name): float(of_run["value"].iloc[-1]) for name, of_run in rates.groupby("run", sort=False)}
    if len(last) == 1:
        first, end = (number(float(rates["value"].iloc[place])) for place in (0, -1))
        return f"Effective learning rate {first} → {end}"
    low, high = (f"{label(name, 24)} ({number(last[name])})" for name in (_least(last), _most(last)))
    return f"Final effective learning rate: lowest {low}, highest {high}"


def _least(values: Mapping[str, float]) -> str:
    return min(values, key=lambda name: values[name])


def _most(values: Mapping[str, float]) -> str:
    return max(values, key=lambda name: values[name])
