"""does_calibration_undo_weight_noise: what noise on the weights costs, and what calibrated batch norms return."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.calibration import SMALL, STATES
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["does_calibration_undo_weight_noise"]

HEADING = "Does calibration undo noise on the weights?"
ORDER = 100
PROBE = "calibration"


def does_calibration_undo_weight_noise(runs: Mapping[str, Run]) -> Question:
    """Answer from accuracy and calibration error at the last step: clean, noisy, and with statistics taken anew.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.calibration_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, absence=unanswered(runs, PROBE))
    every = named(runs)
    said = {
        str(name): sentence(_say(latest(of_run), every[str(name)])) for name, of_run in table.groupby("run", sort=False)
    }
    note = method(
        runs, PROBE, "accuracy_clean",
        estimator="accuracy and expected calibration error (ECE, 0 to 1) in eval mode on the probe data, whatever the "
        "mode of the run: without noise, under one draw of noise on the weights, and under the same draw once each "
        "batch norm's statistics are taken anew on the inputs of the same data",
        error="one standard error over the samples; another draw of the noise costs something else. Few samples in a "
        "bin bias the ECE upward",
        reference="Tsai et al., arXiv:2007.03230",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.calibration,), table, note)


def _say(last: pd.DataFrame, run: Run) -> str:
    by_name = {str(row["name"]): row for _, row in last.iterrows()}
    states = {state: by_name[f"accuracy_{state}"] for state in STATES}
    clean, noisy, calibrated = (float(states[state]["value"]) for state in STATES)
    at = f"at step {states['clean']['step']}"
    noise = _noise(run)
    if not np.isfinite([clean, noisy]).all():
        return f"{at} the accuracy is not a number"
    change = f"({_percent(states['clean'])} → {_percent(states['noisy'])})"
    if clean - noisy < SMALL:
        cost = f"there is little to undo, {at} {noise} costs less than {100 * SMALL:.0f} points of accuracy {change}"
    else:
        cost = f"{at} {noise} costs {number(100 * (clean - noisy))} points of accuracy {change}"
    every = latest(rows(run, PROBE))
    batch_norms = every.loc[every["name"] == "mean_shift_clean", "layer"].nunique()
    if not batch_norms:
        return f"{cost}; the model has no batch norm to calibrate{_ece(by_name, ('clean', 'noisy'))}"
    back = number(100 * (calibrated - noisy))
    of = f"{batch_norms} batch norm{'s' if batch_norms > 1 else ''}"
    gain = f"calibration of {of} changes it by {back} points, to {_percent(states['calibrated'])}"
    return f"{cost}; {gain}{_ece(by_name, tuple(STATES))}"


def _noise(run: Run) -> str:
    probes = run.header.get("probes")
    settings = probes.get(PROBE, {}) if isinstance(probes, dict) else {}
    if not {"kind", "scale"} <= set(settings):
        return "noise"
    return f"{str(settings['kind']).strip(chr(39))} noise of scale {settings['scale']}"


def _percent(row: pd.Series) -> str:
    error = "" if np.isnan(row["error"]) else f" ± {100 * row['error']:.1f}"
    return f"{100 * row['value']:.1f}{error} %"


def _ece(by_name: Mapping[str, pd.Series], states: tuple[str, ...]) -> str:
    found = [f"{number(by_name[f'ece_{state}']['value'])} {state}" for state in states if f"ece_{state}" in by_name]
    return f"; calibration error {', '.join(found)}" if found else ""
