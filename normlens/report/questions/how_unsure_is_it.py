"""how_unsure_is_it: the entropy of the prediction, and the part of it that is the network's own noise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import scalar
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["how_unsure_is_it"]

HEADING = "How unsure is the network?"
ORDER = 90
PROBE = "predictive_entropy"


def how_unsure_is_it(runs: Mapping[str, Run]) -> Question:
    """Answer from the last entropy, against that of a guess, and from the mutual information of class and noise.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.predictive_entropy_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, absence=unanswered(runs, PROBE))
    every = named(runs)
    said = {
        str(name): sentence(_say(of_run, every[str(name)])) for name, of_run in table.groupby("run", sort=False)
    }  # fmt: skip
    note = method(
        runs, PROBE, "entropy",
        estimator="entropy of the softmax outputs averaged over passes in which dropout and stochastic layers draw, "
        "and that less the average entropy of a pass (mutual information), averaged over one probe batch",
        error="one standard error over the samples; of few passes T both are too small by up to about (C - 1) / 2T "
        "nats for C classes. To be sure is not to be right",
        reference="Dutta et al., Nature Communications 13, 2022, doi:10.1038/s41467-022-30305-8",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.predictive_entropy,), table, note)


def _say(of_run: pd.DataFrame, run: Run) -> str:
    last = of_run[of_run["name"] == "entropy"].iloc[-1]
    if np.isnan(last["value"]):
        return f"the entropy is not a number at step {last['step']}"
    words = f"by {_nats(last)} nats at step {last['step']}"
    largest = scalar(run, PROBE, "largest")
    if largest > 0:
        words += f", {number(100 * last['value'] / largest)} % of a guess among {math.exp(largest):.0f} classes"
    return words + _noise(of_run[of_run["step"] == last["step"]], scalar(run, PROBE, "draws"))


def _noise(at_last: pd.DataFrame, draws: float) -> str:
    own = at_last[at_last["name"] == "mutual_information"]
    if own.empty:
        return ""
    if draws == 1:
        return "; nothing in it is random, so none of that is its own noise"
    return f"; {_nats(own.iloc[-1])} of them are its own noise" + (f" ({draws:.0f} passes)" if draws > 1 else "")


def _nats(row: pd.Series) -> str:
    return number(row["value"]) + ("" if np.isnan(row["error"]) else f" ± {number(row['error'])}")
