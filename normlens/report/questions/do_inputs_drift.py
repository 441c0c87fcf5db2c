"""do_inputs_drift: how far each layer's input has moved, beside what chance alone would show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["do_inputs_drift"]

HEADING = "Do the layers' inputs drift?"
PROBE = "activation_drift"


def do_inputs_drift(runs: Mapping[str, Run]) -> Question:
    """Answer from the shift of the channels' means since the first measurement, relative to its null floor.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.activation_drift_data(runs)
    except NotRecordedError:
        return Question(HEADING, 30, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "mean_shift_first",
        estimator="shift = mean over channels of |mu_t - mu_0| / sigma_0 of the layer's input, on one fixed probe "
        "batch, since the first measurement; floor = the 99 % point of the same for a fresh batch without drift",
        error="standard error over the samples",
        reference="S. Ioffe, C. Szegedy 2015, arXiv:1502.03167, section 2: internal covariate shift",
    )  # fmt: skip
    return Question(HEADING, 30, PROBE, said, (plot.activation_drift,), table, note)


def _say(rows: pd.DataFrame) -> str:
    bad = rows[np.isnan(rows["ratio"].to_numpy(float))]
    if len(bad):
        first = bad.iloc[int(np.argmin(bad["step"]))]
        what = f"the drift of {first['layer'] or 'the network'} is not a number from step {first['step']}"
        return f"{what}: its input is not finite, or every channel of it is constant"
    last = latest(rows)
    beyond = last[last["ratio"] > 1]
    if beyond.empty:
        return f"no, none of {len(last)} layers is beyond its null floor at step {last['step'].iloc[0]}"
    worst = beyond.iloc[int(np.argmax(beyond["ratio"]))]
    error = float(worst["error"]) / float(worst["floor"])
    spread = f" ± {error:.2g}" if np.isfinite(error) else ""
    most = f"most {worst['layer'] or 'the network'}, by {number(float(worst['ratio']))}{spread} floors"
    return f"yes, {len(beyond)} of {len(last)} layers at step {worst['step']}, {most}"
