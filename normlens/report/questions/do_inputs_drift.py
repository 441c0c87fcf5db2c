"""do_inputs_drift: how far each layer's input has moved, beside what chance alone would show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.activation_drift import Measure
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest
from normlens.report.svg import Draw
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["do_inputs_drift"]

HEADING = "Do the layers' inputs drift?"
PROBE = "activation_drift"
FURTHER: tuple[Measure, ...] = ("log_scale", "kl", "w1", "ks")


def do_inputs_drift(runs: Mapping[str, Run]) -> Question:
    """Answer from the shift of the channels' means since the first measurement, and of their whole distributions.

    Both relative to their null floors, which are exceeded by chance alone in one case of a hundred.

    Args:
        runs: runs by name.
    """
    try:
        table = _table(runs)
    except NotRecordedError:
        return Question(HEADING, 30, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows) + _shapes(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "mean_shift_first",
        estimator="shift = mean over channels of |mu_t - mu_0| / sigma_0 of the layer's input, on one fixed probe "
        "batch, since the first measurement; W1 = the earth mover's distance of the channels' distributions over "
        "sigma_0, KS = the largest gap between their distribution functions, from histograms of 512 bins; floor = the "
        "99 % point of the same for a fresh batch without drift",
        error="standard error over the samples",
        reference="S. Ioffe, C. Szegedy 2015, arXiv:1502.03167, section 2: internal covariate shift",
    )  # fmt: skip
    return Question(HEADING, 30, PROBE, said, _figures(runs), table, note)


def _table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return the drift of the means, and beside it the ratios of all other measures that were recorded."""
    table = plot.activation_drift_data(runs)
    for measure in FURTHER:
        try:
            further = plot.activation_drift_data(runs, measure=measure)
        except NotRecordedError:
            continue
        keys = ["run", "step", "layer"]
        table = table.merge(
            further[[*keys, "ratio"]].rename(columns={"ratio": f"{measure}_ratio"}), on=keys, how="left"
        )
    return table


def _figures(runs: Mapping[str, Run]) -> tuple[Draw, ...]:
    try:
        plot.activation_ridge_data(runs)
    except NotRecordedError:
        return (plot.activation_drift,)
    return plot.activation_drift, plot.activation_ridge


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


def _shapes(rows: pd.DataFrame) -> str:
    """Say what the whole distributions add to the means; nothing where they were not recorded or are not finite."""
    last = latest(rows)
    if "w1_ratio" not in last or last[["ratio", "w1_ratio"]].isna().any(axis=None):
        return ""
    beyond = last[last["w1_ratio"] > 1]
    if beyond.empty:
        return "; as whole distributions (W1) none"
    worst = beyond.iloc[int(np.argmax(beyond["w1_ratio"]))]
    most = f"most {worst['layer'] or 'the network'}, by {number(float(worst['w1_ratio']))} floors"
    return f"; as whole distributions (W1) {len(beyond)} of {len(last)}, {most}"
