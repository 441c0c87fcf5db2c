"""rate_too_low: a learning rate so low that not even the steepest direction has been walked down."""

from __future__ import annotations

import math

import pandas as pd

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import history, rows
from normlens.run.store import Run

__all__ = ["rate_too_low"]

SETTLED = 3.0
"""Nats by which the loss of a quadratic must have shrunk along its steepest direction: to a twentieth. All others are
slower. Healthy runs of 300 steps on MLP and CNN had above 100."""

LEARNED = 0.5
"""Of the first loss: a run that is below it has learned something, whatever the curvature says."""


def rate_too_low(run: Run) -> list[Finding]:
    """Return a finding if the whole run was too short for its learning rate, and the loss has hardly moved.

    Gradient descent at rate eta shrinks the loss along an eigenvector of eigenvalue lambda by ``exp(-2 eta lambda)`` a
    step, and ``1 / (1 - beta)`` times faster with momentum. Sharpness over edge, times the edge, is eta lambda.

    Args:
        run: an opened run.
    """
    edge, curve = rows(run, "edge_of_stability"), rows(run, "training_curve")
    ratio, loss = history(edge, "ratio"), history(curve, "loss")["value"]
    steps = int(ratio["step"].max()) if len(ratio) else 0
    per_step = _per_step(edge, curve)
    if len(ratio) < 2 or not steps or math.isnan(per_step) or len(loss) < 2:
        return []
    shrunk = steps * float(ratio["value"].median()) * per_step
    if not shrunk < SETTLED or not loss.iloc[-1] > LEARNED * loss.iloc[0]:
        return []
    return [
        Finding(
            severity="look",
            probe="edge_of_stability",
            layer="",
            step=0,
            message=f"In {steps} steps the loss can have shrunk by {number(shrunk)} nats along its steepest direction, "
            f"and by less along all others; it went from {number(loss.iloc[0])} to {number(loss.iloc[-1])}.",
            evidence={"nats": shrunk, "threshold": SETTLED, "sharpness_over_edge": float(ratio["value"].median())},
            advice=f"Raise the learning rate tenfold until that is {number(30 * SETTLED)} or more, or train "
            f"{math.ceil(30 * SETTLED / max(shrunk, 1e-3))} times as long; the edge is at sharpness over edge 1 (Cohen "
            "et al., ICLR 2021, arXiv:2103.00065).",
        )
    ]


def _per_step(edge: pd.DataFrame, curve: pd.DataFrame) -> float:
    """Return by how many nats a step shrinks the loss along the sharpest direction, for each unit of the ratio.

    The edge times the rate is 2 (1 + beta) for SGD, which is below 4, and 2 (1 + beta) / (1 - beta) for Adam, whose
    steps have the size of the rate whatever beta is. Nesterov's edge tells less, and is read as that of plain descent.
    """
    threshold, rate = history(edge, "threshold")["value"], history(curve, "learning_rate")["value"]
    if not len(threshold) or not len(rate):
        return math.nan
    scaled = float(threshold.iloc[0] * rate.iloc[0])
    momentum = scaled / 2 - 1 if 2 <= scaled < 4 else 0.0
    return 2 * scaled / (1 - momentum)
