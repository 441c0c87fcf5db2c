"""stale_statistics: running statistics that are not those of the data, so that eval mode is another network."""

from __future__ import annotations

import math

import pandas as pd

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, latest, rows, scalar, since
from normlens.run.store import Run

__all__ = ["stale_statistics"]

GAP = 0.25
"""Standard deviations (of the mean), or nats (of the variance). Healthy runs of MLP and CNN end below 0.2."""

FLOORS = 3.0
"""Times what the sampling of both sides alone would show."""

INITIAL = 0.05
"""Share of what the running statistics began with, from which on they have not seen enough batches."""

NOISY = 0.25
"""Error of a batch's mean in standard deviations, from which on the running statistics are noise."""

COSTLY = 0.1
"""Nats, and share of the loss, that eval mode must lose for the run to be sick."""


def stale_statistics(run: Run) -> list[Finding]:
    """Return a finding for each normalization whose running statistics are off at the last measurement.

    Args:
        run: an opened run.
    """
    table = rows(run, "batch_noise")
    loss = {name: scalar(run, "batch_noise", name) for name in ("loss_train", "loss_eval", "loss_gap")}
    loss["error"] = float(history(table, "loss_gap")["error"].iloc[-1]) if len(history(table, "loss_gap")) else math.nan
    found = []
    for layer, readings in by_layer(table[table["layer"] != ""]):
        names = ("running_mean_gap", "running_log_variance_gap")
        gap = pd.concat([history(readings, name).set_index("step")["value"] for name in names], axis=1).max(axis=1)
        floor = history(readings, "running_gap_floor").set_index("step")["value"]
        wrong = (gap >= GAP) & (gap >= FLOORS * floor.reindex(gap.index))
        if len(wrong) and wrong.iloc[-1]:
            found.append(_finding(layer, since(wrong.index, wrong), float(gap.iloc[-1]), readings, loss))
    return found


def _finding(layer: str, step: int, gap: float, readings: pd.DataFrame, loss: dict[str, float]) -> Finding:
    costly = loss["loss_gap"] - 2 * loss["error"] > max(COSTLY, COSTLY * loss["loss_train"])
    cost = f"; in eval mode the loss is {number(loss['loss_eval'])} instead of {number(loss['loss_train'])}"
    cause, advice = _cause(readings)
    return Finding(
        severity="sick" if costly else "look",
        probe="batch_noise",
        layer=layer,
        step=step,
        message=f"The running statistics are not those of the data, {cause}{cost if costly else ''}.",
        evidence={"gap": gap, "threshold": GAP, "loss_train": loss["loss_train"], "loss_eval": loss["loss_eval"]},
        advice=f"{advice}, or take them again before use (normlens.inference.calibration).",
    )


def _cause(readings: pd.DataFrame) -> tuple[str, str]:
    last = latest(readings).set_index("name")["value"]
    share, noise = float(last.get("initial_share", 0.0)), float(last.get("statistic_error", 0.0))
    if share > INITIAL:
        return f"{100 * share:.0f} % of them still being what they began with", "Raise the momentum of the norm"
    if noise > NOISY:
        return "the batches being too small to tell them", "Use larger batches or a lower momentum of the norm"
    return (
        "since the network moves faster than they follow",
        "Raise the momentum of the norm or lower the learning rate",
    )
