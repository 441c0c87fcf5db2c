"""do_batch_norm_and_dropout_disagree: variances at the batch norms, in training, in use, and as they are stored."""

from __future__ import annotations

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

__all__ = ["do_batch_norm_and_dropout_disagree"]

HEADING = "Do batch norm and dropout disagree?"
ORDER = 64
PROBE = "variance_shift"
NOTHING = "the model has no batch norm with a running variance for each channel, so nothing can disagree with it"


def do_batch_norm_and_dropout_disagree(runs: Mapping[str, Run]) -> Question:
    """Answer from the variances of the batch norms' inputs at the last step.

    Args:
        runs: runs by name.
    """
    said = {str(name): sentence(NOTHING) for name, run in named(runs).items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.variance_shift_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    every = named(runs)
    for name, of_run in table.groupby("run", sort=False):
        said[str(name)] = sentence(_say(of_run, every[str(name)]))
    note = method(
        runs, PROBE, "shift", "eval_to_running",
        estimator="the variance of each channel of a batch norm's input over the probe data, in a pass in train mode "
        "(masks drawn, statistics of the batch) and in one in eval mode, whatever the mode of the run; ratios are "
        "geometric means over the channels. Predicted: what the gates of the dropout in front add behind one layer "
        "with weights",
        error="one standard error, samples being independent (delta method, both passes on the same samples)",
        reference="Li, Chen, Hu and Yang, arXiv:1801.05134",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.variance_shift,), table, note)


def _say(of_run: pd.DataFrame, run: Run) -> str:
    step, shift = of_run["step"].iloc[0], of_run[of_run["name"] == "shift"]
    before = latest(rows(run, PROBE, "dropouts_before"))
    behind = set(before.loc[before["value"] > 0, "layer"])
    known = shift[np.isfinite(shift["value"]) & (shift["layer"].isin(behind) | (not behind))]
    if known.empty:
        return f"at step {step}, the variances are not known"
    worst = known.iloc[int(np.abs(np.log(known["value"].to_numpy(float))).argmax())]
    error = f" ± {number(worst['error'])}" if np.isfinite(worst["error"]) else ""
    words = f"the input of {worst['layer']} varies {number(worst['value'])}{error} times as much in training as in use"
    alone = f" (its dropout alone makes {number(worst['predicted'])})" if np.isfinite(worst["predicted"]) else ""
    used = of_run[(of_run["name"] == "eval_to_running") & (of_run["layer"] == worst["layer"])]["value"]
    stored = f", and in use {number(used.iloc[0])} times as its running variance says" if len(used) else ""
    most = f"; that is the most of {len(known)} batch norms behind a dropout" if behind else "; no dropout is before it"
    return f"at step {step}, {words}{alone}{stored}{most}"
