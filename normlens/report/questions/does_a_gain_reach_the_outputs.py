"""does_a_gain_reach_the_outputs: which layers normalize a gain common to their weights away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.self_normalization import INVARIANT
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["does_a_gain_reach_the_outputs"]

HEADING = "Does a gain of a layer's weights reach the outputs?"
ORDER = 70
PROBE = "self_normalization"


def does_a_gain_reach_the_outputs(runs: Mapping[str, Run]) -> Question:
    """Answer from the relative change of the outputs over the gain, for each layer with weights at the last step.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.self_normalization_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, absence=unanswered(runs, PROBE))
    every = named(runs)
    said = {
        str(name): sentence(_say(of_run) + _spread(every[str(name)]))
        for name, of_run in table.groupby("run", sort=False)
    }
    note = method(
        runs, PROBE, "gain_sensitivity",
        estimator="weight and bias of one layer after the other are scaled up; relative change of all outputs on one "
        "probe batch over the gain, normalizations on the statistics of that batch. The spread is the standard "
        "deviation over the channels of their standard deviations, over its mean, before each nonlinearity",
        error="none given: exact for that batch and that gain; another gain may be let through otherwise",
        reference="Detorakis et al., NeurIPS 2019, arXiv:1910.12316, for self-normalization; the sensitivity is ours",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.self_normalization,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    known = of_run[np.isfinite(of_run["value"])]
    step, layers = of_run["step"].iloc[0], len(of_run)
    if known.empty:
        return f"the change of the outputs is not finite for any of {layers} layers at step {step}"
    own = int((known["value"] < INVARIANT).sum())
    most = known.iloc[int(np.argmax(known["value"]))]
    lost = f", of {layers - len(known)} it is not known" if len(known) < layers else ""
    begin = "no" if own == layers else f"that of {len(known) - own} of {layers} layers does"
    words = f"{begin}, at step {step}; {own} of {layers} normalize it away (to below {INVARIANT:g} of it){lost}"
    return f"{words}; most gets through in {most['layer'] or 'the network'}: {number(most['value'])} times the gain"


def _spread(run: Run) -> str:
    last = latest(rows(run, PROBE))
    known = last[(last["name"] == "unit_spread") & np.isfinite(last["value"])]
    if known.empty:
        return ""
    widest = known.iloc[int(np.argmax(known["value"]))]
    return f"; the scales of the units spread by at most {number(100 * widest['value'])} % ({widest['layer']})"
