"""how_noisy_are_batch_statistics: the error of a batch's mean, and the gap of the running statistics."""

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

__all__ = ["how_noisy_are_batch_statistics"]

HEADING = "How noisy are batch statistics, and do the running ones match?"
ORDER = 66
PROBE = "batch_noise"
NOTHING = "the model has no layer that normalizes by the batch"
GAP = ("running_mean_gap", "running_log_variance_gap", "running_gap_floor")


def how_noisy_are_batch_statistics(runs: Mapping[str, Run]) -> Question:
    """Answer from the noise of the batch statistics and the gap of the running ones at the last step.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {name: sentence(NOTHING) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.batch_noise_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    for name, of_run in table.groupby("run", sort=False):
        run = every[str(name)]
        said[str(name)] = sentence(_noise(of_run) + _law(of_run) + _gap(run) + _loss(run))
    note = method(
        runs, PROBE, "statistic_error", "running_mean_gap",
        estimator="spread of the samples' means over positions, over that of all values, for batches of the size that "
        "the lens was told of; running statistics against those of the probe data, all in units of each channel's "
        "deviation, averaged over channels",
        error="standard errors from the draw of the samples, which count as independent, their positions not; the "
        "floor is what sampling alone makes of a gap on average, at weights that stand still",
        reference="Luo, Wang, Shao and Peng, ICLR 2019, arXiv:1809.00846, for the law of the noise",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.batch_noise,), table, note)


def _noise(of_run: pd.DataFrame) -> str:
    noise = of_run[of_run["name"] == "statistic_error"]
    known = noise[np.isfinite(noise["value"])]
    if known.empty:
        return f"the noise is not finite in any of {len(noise)} layers"
    worst = known.loc[known["value"].idxmax()]
    spread = "" if np.isnan(worst["error"]) else f" ± {number(100 * worst['error'])}"
    counts = f"{worst['effective_values']:.0f} of {worst['values_per_channel']:.0f} values per channel count"
    return (
        f"at step {worst['step']} a batch's mean is off by at most {number(100 * worst['value'])}{spread} % of σ "
        f"({worst['layer'] or 'the network'}, where {counts})"
    )


def _law(of_run: pd.DataFrame) -> str:
    layers = of_run[of_run["name"] == "statistic_error"]
    found = layers.loc[np.isfinite(layers["std_noise"]), "std_noise"]
    if found.empty:
        return ""
    low, high = number(found.min()), number(found.max())
    span = low if low == high else f"{low} to {high}"
    return f"; their deviations scatter {span} times as the law for independent values says"


def _gap(run: Run) -> str:
    last = latest(rows(run, PROBE, *GAP))
    wide = last.pivot_table(index="layer", columns="name", values="value", dropna=False).reindex(columns=GAP)
    known = wide[np.isfinite(wide["running_mean_gap"])]
    if known.empty:
        return ""
    worst = known.loc[known["running_mean_gap"].idxmax()]
    floor = number(worst["running_gap_floor"])
    others = "" if np.isnan(worst[GAP[1]]) else f", their variances by a factor of {number(np.exp(worst[GAP[1]]))}"
    return (
        f"; running means are off by at most {number(worst['running_mean_gap'])} σ ({worst.name or 'the network'}, "
        f"where sampling alone makes up to {floor}){others}"
    )


def _loss(run: Run) -> str:
    found = rows(run, PROBE, "loss_gap")
    if found.empty or not np.isfinite(found["value"].iloc[-1]):
        return ""
    value, error = float(found["value"].iloc[-1]), float(found["error"].iloc[-1])
    if np.isfinite(error) and abs(value) <= 2 * error:
        return "; the loss is the same with either, to its error"
    spread = f" ± {number(error)}" if np.isfinite(error) else ""
    return f"; with the running ones the loss is {number(abs(value))}{spread} {'higher' if value > 0 else 'lower'}"
