"""did_it_learn: the loss before and after, and the test accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["did_it_learn"]

HEADING = "Did it learn?"
PROBE = "training_curve"


def did_it_learn(runs: Mapping[str, Run]) -> Question:
    """Answer from the loss on the probe batch and the test accuracy that the user logged.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.training_curve_data(runs)
    except NotRecordedError:
        return Question(HEADING, 10, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "loss", "accuracy",
        estimator="mean loss and accuracy on one fixed probe batch; test accuracy as logged by the training script",
        error="standard error over the samples; of an accuracy p it is sqrt(p (1 - p) / n)",
        reference="none needed: these are the definitions",
    )  # fmt: skip
    return Question(HEADING, 10, PROBE, said, (plot.training_curve,), table, note)


def _say(rows: pd.DataFrame) -> str:
    losses = rows[rows["name"] == "loss"]
    first, last = (float(losses["value"].iloc[i]) for i in (0, -1))
    tests = rows[rows["name"] == "test_accuracy"]["value"]
    test = f", test accuracy {100 * tests.iloc[-1]:.1f} %" if len(tests) and np.isfinite(tests.iloc[-1]) else ""
    bad = losses[~np.isfinite(losses["value"])]
    if len(bad):
        return f"no, the loss is not finite at step {bad['step'].iloc[0]}, the first of {len(bad)} such steps{test}"
    error = float(losses["error"].iloc[-1])
    spread = f" ± {error:.2g}" if np.isfinite(error) else ""
    verb = "fell" if last < first else "rose" if last > first else "stayed"
    word = "yes" if last < first else "no"
    steps = losses["step"].iloc[-1] - losses["step"].iloc[0]
    return f"{word}, the loss {verb} from {number(first)} to {number(last)}{spread} in {steps} steps{test}"
