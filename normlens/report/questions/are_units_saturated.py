"""are_units_saturated: the share of values at which a bounded nonlinearity lets no gradient through."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.saturation import HALF
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import scalar
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["are_units_saturated"]

HEADING = "Are units saturated?"
ORDER = 22
PROBE = "saturation"
NOTHING = "the model has no bounded nonlinearity that is a module, so nothing can saturate"


def are_units_saturated(runs: Mapping[str, Run]) -> Question:
    """Answer from the layer with the largest share at the last step.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {name: sentence(NOTHING) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.saturation_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    said |= {str(name): sentence(_say(of_run)) for name, of_run in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "saturated",
        estimator="share of the values that enter a bounded nonlinearity at which its slope is below a twentieth of "
        "the steepest, over samples, positions and channels",
        error="standard error of the mean over the samples",
        reference="Glorot and Bengio, AISTATS 2010, section 3",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.saturation,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    step, known = of_run["step"].iloc[0], of_run[np.isfinite(of_run["value"])]
    if known.empty:
        return f"the share is not finite in any of {len(of_run)} layers at step {step}"
    worst = known.loc[known["value"].idxmax()]
    begin = "yes" if worst["value"] >= HALF else "no"
    spread = "" if np.isnan(worst["error"]) else f" ± {number(100 * worst['error'])}"
    others = ", and less in the others" if len(of_run) > 1 else ""
    return (
        f"{begin}: at step {step} {number(100 * worst['value'])}{spread} % of the values are where "
        f"{worst['layer'] or 'the network'} is flat{others}"
    )
