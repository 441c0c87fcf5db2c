"""diverged: a loss that ends above its start, far above its best, or at no finite number."""

from __future__ import annotations

import math

import numpy as np

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import rows, since
from normlens.run.store import Run

__all__ = ["diverged"]

SIGMAS = 2.0
"""The final loss counts as above the first when it is so by this many standard errors of the difference, where the
errors are known; the usual 95 %."""

RISE = 10.0
"""Times the best loss: no noise of a fixed probe batch is that large, but a run can be on its way back down."""

SOLVED = 0.01
"""Of the first loss: below it the task is solved, and a tenfold rise from 1e-6 to 1e-5 means nothing."""


def diverged(run: Run) -> list[Finding]:
    """Return a finding if the loss on the probe batch ended badly: sick above its start or not finite, else a look.

    Args:
        run: an opened run.
    """
    losses = rows(run, "training_curve", "loss")
    value, error = losses["value"].to_numpy(float), np.nan_to_num(losses["error"].to_numpy(float))
    if not value.size:
        return []
    if not math.isfinite(value[-1]):
        message = f"The loss is {number(value[-1])} at the end: the parameters have left every sensible range."
        return [_finding("sick", since(losses["step"], ~np.isfinite(value)), value[-1], math.nan, math.inf, message)]
    finite = np.isfinite(value)
    first, best, last = value[finite][0], value[finite].min(), value[-1]
    margin = SIGMAS * math.hypot(error[finite][0], error[-1])
    if last > first + margin:
        step = since(losses["step"], value > first)
        return [_finding("sick", step, last, error[-1], first + margin, "The loss is higher than before training.")]
    if last > RISE * best > 0 and last > SOLVED * first:
        step = since(losses["step"], value > RISE * best)
        message = f"The loss has risen to {last / best:.0f} times its best."
        return [_finding("look", step, last, error[-1], RISE * best, message)]
    return []


def _finding(severity: str, step: int, value: float, error: float, threshold: float, message: str) -> Finding:
    return Finding(
        severity=severity,
        probe="training_curve",
        layer="",
        step=step,
        message=message,
        evidence={"loss": value, "error": error or math.nan, "threshold": threshold},
        advice="Lower the learning rate, warm it up, or clip gradients; the gradient norm shows when it began.",
    )
