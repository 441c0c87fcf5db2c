"""training_curve: did it learn? Loss (log axis) and accuracy against optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from normlens.plot.canvas import curve, log_axis, name_runs, new_axes, note, stack, step_axis
from normlens.plot.collect import Gathered, gather, select
from normlens.plot.style import dress, label, number, title
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["training_curve", "training_curve_data"]

COLUMNS = ["run", "step", "name", "value", "error", "n"]
ACCURACIES = {"accuracy": ":", "test_accuracy": "-"}


def training_curve(runs: Run | Mapping[str, Run], ax: Axes | None = None) -> Axes:
    """Draw the loss on the probe batch above the accuracy, both against optimizer steps.

    The loss has a log axis unless it is somewhere not positive. The accuracy panel (a fraction, 0 to 1) is left out
    where no run has one; its solid line is the ``test_accuracy`` the user logged, its dotted one that on the probe
    batch. Bands are one standard error; a cross marks a value that is not finite.

    Args:
        runs: one run, or several by name.
        ax: where to draw; None makes a new figure.

    Raises:
        NotRecordedError: no run has a loss of the probe ``training_curve``.
    """
    gathered = gather(runs, _read)
    ax = new_axes(ax)
    accuracies = [name for name in ACCURACIES if name in set(gathered.table["name"])]
    panels = stack(ax, (3, 2) if accuracies else (1,))
    for panel in panels:
        dress(panel)
    _draw_loss(panels[0], gathered, host=ax)
    if accuracies:
        _draw_accuracy(panels[1], gathered, accuracies)
    step_axis(panels[-1])
    title(ax, _answer(gathered))
    note(ax, gathered.missing, what="training_curve")
    return ax


def training_curve_data(runs: Run | Mapping[str, Run]) -> pd.DataFrame:
    """Return the figure's numbers: run, step, name (loss, accuracy, test_accuracy), value, error, n.

    Args:
        runs: one run, or several by name.

    Raises:
        NotRecordedError: no run has a loss of the probe ``training_curve``.
    """
    return gather(runs, _read).table[COLUMNS]


def _read(run: Run) -> pd.DataFrame:
    select(run, "training_curve", "loss")
    tables = [select(run, "training_curve", "loss", "accuracy")]
    with suppress(NotRecordedError):  # logging it is up to the user
        tables.append(select(run, "user", "test_accuracy"))
    return pd.concat(tables, ignore_index=True)


def _draw_loss(ax: Axes, gathered: Gathered, *, host: Axes) -> None:
    losses = gathered.table.loc[gathered.table["name"] == "loss", "value"]
    positive = bool((losses[np.isfinite(losses)] > 0).all())
    ax.set_ylabel("loss" if positive else "loss (linear axis)")
    lines = {}
    for name, color, table in gathered.each():
        rows = table[table["name"] == "loss"]
        x, y, error = (rows[column].to_numpy(float) for column in ("step", "value", "error"))
        lines[name] = curve(ax, x, y, error=error, color=color)
    if positive:
        log_axis(ax)
    name_runs(ax, lines, host=host)


def _draw_accuracy(ax: Axes, gathered: Gathered, accuracies: list[str]) -> None:
    for _, color, table in gathered.each():
        for kind in accuracies:
            rows = table[table["name"] == kind]
            x, y, error = (rows[column].to_numpy(float) for column in ("step", "value", "error"))
            curve(ax, x, y, error=error, color=color, style=ACCURACIES[kind] if len(accuracies) > 1 else "-")
    both, one = "accuracy\n— test  ··· probe", {"accuracy": "accuracy\n(probe batch)", "test_accuracy": "test accuracy"}
    ax.set_ylabel(both if len(accuracies) > 1 else one[accuracies[0]])
    ax.set_ylim(0, 1.03)


def _answer(gathered: Gathered) -> str:
    """The title: what became of the loss."""
    losses = {name: table[table["name"] == "loss"] for name, _, table in gathered.each()}
    broken = {name: rows["step"][~np.isfinite(rows["value"])] for name, rows in losses.items()}
    broken = {name: steps for name, steps in broken.items() if len(steps)}
    if broken:
        said = [f"{label(name, 24)} from step {steps.min()}" for name, steps in list(broken.items())[:2]]
        if len(losses) == 1:
            return f"The loss is not finite from step {next(iter(broken.values())).min()}"
        return f"The loss is not finite: {', '.join(said)}" + (" and others" if len(broken) > 2 else "")
    final = {name: float(rows["value"].iloc[-1]) for name, rows in losses.items()}
    if len(final) == 1:
        (rows,) = losses.values()
        test = _last(gathered.table, "test_accuracy")
        first = float(rows["value"].iloc[0])
        return f"Loss {number(first)} → {number(float(rows['value'].iloc[-1]))}" + test
    best, worst = min(final, key=lambda n: final[n]), max(final, key=lambda n: final[n])
    low, high = (f"{label(name, 24)} ({number(final[name])})" for name in (best, worst))
    return f"Final loss: lowest {low}, highest {high}"


def _last(table: pd.DataFrame, name: str) -> str:
    rows = table[table["name"] == name]
    return f", test accuracy {100 * rows['value'].iloc[-1]:.1f} %" if len(rows) else ""
