"""do_gradients_vanish: the norm of the gradient before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["do_gradients_vanish"]

HEADING = "Do gradients vanish or explode?"
PROBE = "training_curve"


def do_gradients_vanish(runs: Mapping[str, Run]) -> Question:
    """Answer from the Euclidean norm of the gradient of the loss on the probe batch, over all parameters.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.gradient_norm_data(runs)
    except NotRecordedError:
        return Question(HEADING, 40, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "gradient_norm",
        estimator="Euclidean norm over all trainable parameters of the gradient on one fixed probe batch, and of the "
        "last optimizer step",
        error="none given: exact for that batch",
        reference="none needed: these are the definitions",
    )  # fmt: skip
    return Question(HEADING, 40, PROBE, said, (plot.gradient_norm,), table, note)


def _say(rows: pd.DataFrame) -> str:
    norms = rows[rows["name"] == "gradient_norm"]
    bad = norms[~np.isfinite(norms["value"])]
    if len(bad):
        return f"the gradient is not finite at step {bad['step'].iloc[0]}, the first of {len(bad)} such steps"
    first, last = (float(norms["value"].iloc[i]) for i in (0, -1))
    peak = norms.iloc[int(np.argmax(norms["value"]))]
    top = f"its largest value was {number(float(peak['value']))} at step {peak['step']}"
    return f"the gradient's norm went from {number(first)} to {number(last)}, {top}"
