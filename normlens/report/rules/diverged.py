"""diverged: a loss that ends above its start, far above its best, or at no finite number."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows, since
from normlens.run.store import Run

__all__ = ["diverged"]

SIGMAS = 2.0
"""The final loss counts as above the first when it is so by this many standard errors of the difference, where the
errors are known; the usual 95 %."""

RISE = 10.0
"""Times the best loss: no noise of a fixed probe batch is that large, but a run can be on its way back down."""

UNKNOWN = 0.01
"""Of the first loss, in place of these errors where they are not known."""

LEARNED = 0.9
"""Of the first loss: a run that has been above its start and has not come below nine tenths of it since has lost what
it was given."""

GROWN = 2.0
"""Times its first norm: weights that have doubled are where it began."""

SOLVED = 0.01
"""Of the first loss: below it the task is solved, and a tenfold rise from 1e-6 to 1e-5 means nothing."""


def diverged(run: Run) -> list[Finding]:
    """Return a finding if the loss on the probe batch ended badly: sick above its start or not finite, else a look.

    Args:
        run: an opened run.
    """
    losses = rows(run, "training_curve", "loss")
    value, error = losses["value"].to_numpy(float), losses["error"].to_numpy(float)
    if not value.size:
        return []
    if not math.isfinite(value[-1]):
        message = f"The loss is {number(value[-1])} at the end: the parameters have left every sensible range."
        return [_finding(run, "sick", since(losses["step"], ~np.isfinite(value)), losses, math.inf, message)]
    finite = np.isfinite(value)
    return _bad_end(run, losses[finite], _margin(value[finite][0], error[finite][0], error[-1]))


def _margin(first: float, *errors: float) -> float:
    known = np.nan_to_num(errors)
    return SIGMAS * math.hypot(*known) if known.any() else UNKNOWN * first


def _bad_end(run: Run, losses: pd.DataFrame, margin: float) -> list[Finding]:
    value, steps = losses["value"].to_numpy(float), losses["step"]
    first, best, peak, last = value[0], value.min(), value.max(), value[-1]
    if last > first + margin:
        message = "The loss is higher than before training."
        return [_finding(run, "sick", since(steps, value > first), losses, first + margin, message)]
    if peak > first + margin and last > LEARNED * first:
        step = int(steps.iloc[int(np.argmax(value > first + margin))])
        message = f"The loss rose to {number(peak)}, above that before training, and has not recovered."
        return [_finding(run, "sick", step, losses, LEARNED * first, message)]
    if last > RISE * best > 0 and last > SOLVED * first:
        message = f"The loss has risen to {last / best:.0f} times its best."
        return [_finding(run, "look", since(steps, value > RISE * best), losses, RISE * best, message)]
    return []


def _finding(run: Run, severity: str, step: int, losses: pd.DataFrame, threshold: float, message: str) -> Finding:
    value, error = (float(losses[column].iloc[-1]) for column in ("value", "error"))
    layer, grown = _where(run)
    origin = f" It began in {layer or 'the network'}, whose weights grew {number(grown)} times." if grown else ""
    return Finding(
        severity=severity,
        probe="training_curve",
        layer=layer,
        step=step,
        message=message + origin,
        evidence={"loss": value, "error": error or math.nan, "threshold": threshold},
        advice="Lower the learning rate, warm it up, or clip gradients; the gradient norm shows when it began.",
    )


def _where(run: Run) -> tuple[str, float]:
    """Return the layer whose weights were the first to double, of several the one that grew most, and by how much."""
    grown = []
    for layer, readings in by_layer(rows(run, "weight_dynamics", "norm")):
        norm = history(readings, "norm")
        growth = (norm["value"] / norm["value"].iloc[0]).to_numpy(float)
        large = np.flatnonzero(growth >= GROWN)
        if large.size:
            grown.append((int(norm["step"].iloc[large[0]]), -float(growth[large[0]]), layer))
    return (min(grown)[2], -min(grown)[1]) if grown else ("", 0.0)
