"""how_predictive_is_the_gradient: how loss and gradient change along it, and the smoothness that this amounts to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import rows
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["how_predictive_is_the_gradient"]

HEADING = "How far does the gradient predict the loss?"
ORDER = 42
PROBE = "gradient_predictiveness"


def how_predictive_is_the_gradient(runs: Mapping[str, Run]) -> Question:
    """Answer from the change of the gradient along itself, the range of the loss there, and the effective smoothness.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.gradient_predictiveness_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, absence=unanswered(runs, PROBE))
    every = named(runs)
    said = {
        str(name): sentence(_say(of_run) + _smoothness(every[str(name)]))
        for name, of_run in table.groupby("run", sort=False)
    }
    note = method(
        runs, PROBE, "change_max",
        estimator="loss and gradient at several multiples of the learning rate along the negative gradient, on one "
        "fixed probe batch whose statistics the normalizations use whatever the mode; the effective smoothness is the "
        "largest change of the gradient over the distance",
        error="none given: exact for that batch and those multiples. Of an optimizer that does not step along the "
        "gradient (momentum, Adam) it is the learning rate alone that is taken",
        reference="Santurkar, Tsipras, Ilyas and Madry, NeurIPS 2018, arXiv:1805.11604",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.gradient_predictiveness,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    step = of_run["step"].max()
    last = of_run[of_run["step"] == step].set_index("name")["value"]
    if not np.isfinite(last["change_max"]):
        return f"at step {step} the change of the gradient is not a number"
    words = f"at step {step} the gradient changes along the probed steps by {number(last['change_min'])} to "
    words += (
        f"{number(last['change_max'])} of its norm, and the loss there lies between {number(last['loss_min'])} and "
    )
    return words + number(last["loss_max"])


def _smoothness(run: Run) -> str:
    found = rows(run, PROBE, "smoothness")
    known = found[np.isfinite(found["value"])]
    if known.empty:
        return ""
    ends = [number(float(known["value"].iloc[place])) for place in (0, -1)]
    went = f"went from {ends[0]} to {ends[1]}" if len(known) > 1 else f"was {ends[0]}"
    return f"; the effective smoothness {went}"
