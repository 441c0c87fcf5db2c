"""do_layers_chase_each_other: how a step of the layers below moves and turns a layer's own gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows, scalar
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["do_layers_chase_each_other"]

HEADING = "Do the layers chase each other?"
ORDER = 44
PROBE = "covariate_shift"
NOTHING = "no layer was measured: it takes a step of the optimizer, and a weight layer above others that moved"


def do_layers_chase_each_other(runs: Mapping[str, Run]) -> Question:
    """Answer from the angle between a layer's gradient before and after the layers below it have stepped.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {str(name): sentence(NOTHING) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.covariate_shift_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    said |= {str(name): sentence(_say(every[str(name)])) for name in table["run"].unique()}
    note = method(
        runs, PROBE, "shift",
        estimator="gradient by the weights of a layer before an optimizer step (G), and where the layers below it have "
        "made that step and no other has (G'), on the same probe batch, whose statistics the normalizations use "
        "whatever the mode; a norm moves with the layers below it. Of a few layers spread over the depth",
        error="none given: exact for that step and that batch",
        reference="Santurkar, Tsipras, Ilyas and Madry, NeurIPS 2018, arXiv:1805.11604, definition 2.1",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.covariate_shift,), table, note)


def _say(run: Run) -> str:
    last = latest(rows(run, PROBE, "shift", "cosine", "gradient_norm"))
    step, by_layer = last["step"].iloc[0], last.pivot(index="layer", columns="name", values="value")
    known = by_layer[np.isfinite(by_layer["cosine"])]
    if known.empty:
        return f"at step {step} it is not a number in any of {len(by_layer)} layers"
    worst = known["cosine"].idxmin()
    words = f"the step before {step} turned the gradient of a layer, by the layers below alone, by {_degrees(known)} "
    words += f"(median of {len(known)} layers), most in {worst} by {_degrees(known.loc[[worst]])}"
    relative = float(known.loc[worst, "shift"] / known.loc[worst, "gradient_norm"])
    lost = len(by_layer) - len(known)
    gone = f"; {lost} of {len(by_layer)} layers are not a number" if lost else ""
    return f"{words}, and moved it by {number(relative)} of its norm{gone}"


def _degrees(layers: pd.DataFrame) -> str:
    cosine = float(layers["cosine"].median())
    return f"{number(math.degrees(math.acos(min(1.0, max(-1.0, cosine)))))}°"
