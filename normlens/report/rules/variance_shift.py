"""variance_shift: dropout before a batch norm, whose variance in use is not the one it was trained on."""

from __future__ import annotations

import math

import pandas as pd

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows
from normlens.run.store import Run

__all__ = ["variance_shift"]

SHIFT = 1.25
"""Factor of the variance: what dropping a fifth of independent inputs makes (1/0.8). Without dropout healthy runs of
MLP and CNN have at most 1.16."""


def variance_shift(run: Run) -> list[Finding]:
    """Return a finding for each batch norm behind a dropout whose variance is another in use than in training.

    Args:
        run: an opened run.
    """
    found = []
    for layer, readings in by_layer(rows(run, "variance_shift")):
        used, before = history(readings, "eval_to_running"), history(readings, "dropouts_before")
        if len(used) > 1 and len(before) and before["value"].iloc[-1] > 0:
            shift = history(readings, "shift")
            if float(shift["value"].iloc[-1]) >= SHIFT and float(used["value"].iloc[-1]) <= 1 / SHIFT:
                found.append(_finding(layer, shift, float(used["value"].iloc[-1]), readings))
    return found


def _finding(layer: str, shift: pd.DataFrame, used: float, readings: pd.DataFrame) -> Finding:
    last = shift.iloc[-1]
    predicted = history(readings, "shift_predicted")["value"]
    known = {"predicted": float(predicted.iloc[-1])} if len(predicted) and math.isfinite(predicted.iloc[-1]) else {}
    return Finding(
        severity="look",
        probe="variance_shift",
        layer=layer,
        step=int(shift.loc[shift["value"] >= SHIFT, "step"].iloc[0]),
        message=f"Dropout makes the variance {number(float(last['value']))} times as large in training as in use, "
        f"where this batch norm then divides by too much: what it lets through has {number(used)} of its variance.",
        evidence={"shift": float(last["value"]), "error": float(last["error"]), "threshold": SHIFT, **known},
        advice="Put the dropout behind the last batch norm, drop less, or take the running statistics again in eval "
        "mode (Li et al., CVPR 2019, arXiv:1801.05134).",
    )
