"""activation_condition: are the layers' inputs ill-conditioned, and what would normalizing them gain?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import layer_axis, legend, new_axes, note, title_width
from normlens.plot.collect import Gathered, gather, layer_order, select
from normlens.plot.layer_marks import log_marks
from normlens.plot.style import dress, label, number, title
from normlens.run.store import Run

__all__ = ["activation_condition", "activation_condition_data"]

KINDS = {"kappa_raw": "o", "kappa_centered": "D", "kappa_normalized": "s"}
NULLITY = {kind: kind.replace("kappa", "nullity") for kind in KINDS}


def activation_condition(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the condition numbers of each layer's input at the last step (dimensionless, log axis).

    As it comes (disk), centered (diamond) and batch-normalized (square), each with a column of ones for the bias. The
    condition of a neuron's Hessian is up to the square of it.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a condition number of the probe ``activation_condition``.
    """
    gathered = gather(runs, _read)
    layers = layer_order(gathered)
    ax = new_axes(ax, len(layers))
    dress(ax, grid="x")
    log_marks(ax, gathered, layers, KINDS)
    layer_axis(ax, layers)
    ax.set_xlabel("condition number κ:  ● as it is   ◇ centered   □ normalized")
    if len(gathered.runs) > 1:
        legend(ax, {name: color for name, color, _ in gathered.each()})
    title(ax, _answer(gathered), width=title_width(layers))
    note(ax, gathered.missing, what="activation_condition")
    return ax


def activation_condition_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers, a row for each run, layer and matrix, of each run's last step.

    Columns: run, step, layer, name (kappa_raw, kappa_centered, kappa_normalized), value, n (rows), and the nullity and
    the tolerance that it was taken at, without which it means nothing.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a condition number of the probe ``activation_condition``.
    """
    return gather(runs, _read).table


def _read(run: Run) -> pd.DataFrame:
    rows = select(run, "activation_condition", *KINDS)
    step = rows["step"].max()
    table: pd.DataFrame = rows.loc[rows["step"] == step, ["step", "layer", "name", "value", "n"]]
    frame = run.frame("activation_condition")
    numbers = frame[frame["step"] == step].set_index(["layer", "name"])["value"].to_dict()
    keys = list(zip(table["layer"], table["name"], strict=True))
    table["nullity"] = [numbers.get((layer, NULLITY[name]), np.nan) for layer, name in keys]
    table["tolerance"] = [numbers.get((layer, "tolerance"), np.nan) for layer, _ in keys]
    return table.reset_index(drop=True)


def _answer(gathered: Gathered) -> str:
    table = gathered.table
    raw = table[(table["name"] == "kappa_raw") & np.isfinite(table["value"])]
    if raw.empty:
        return "The inputs' condition number is not finite in any layer"
    worst = raw.loc[raw["value"].idxmax()]
    same = table[(table["run"] == worst["run"]) & (table["layer"] == worst["layer"])].set_index("name")["value"]
    who = "" if len(gathered.runs) == 1 else f"{label(worst['run'], 24)}, "
    gain = f"centered {number(same['kappa_centered'])}, normalized {number(same['kappa_normalized'])}"
    return f"Worst input: {who}{label(worst['layer'], 28)}, κ = {number(worst['value'])}; {gain}"
