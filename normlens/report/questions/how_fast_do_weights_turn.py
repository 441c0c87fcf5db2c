"""how_fast_do_weights_turn: the effective learning rate, the angle of a step, and whether a weight's length counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["how_fast_do_weights_turn"]

HEADING = "How fast do the weights turn?"
ORDER = 60
PROBE = "weight_dynamics"

INVARIANT = 1e-4
"""Radial share of the gradient below which a length does not count; that of D random numbers is about D^-1/2."""


def how_fast_do_weights_turn(runs: Mapping[str, Run]) -> Question:
    """Answer from the medians over the layers at the last step, and the count of scale-invariant layers.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.weight_dynamics_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, absence=unanswered(runs, PROBE))
    every = named(runs)
    said = {
        str(name): sentence(_say(of_run) + _invariance(every[str(name)]))
        for name, of_run in table.groupby("run", sort=False)
    }
    note = method(
        runs, PROBE, "invariance",
        estimator="learning rate over the squared length of each weight, and the angle between a weight before and "
        "after an optimizer step; medians over the layers. The radial share of the gradient is the cosine between a "
        f"weight and its gradient on one probe batch: below {INVARIANT:g} the loss counts as free of the weight's "
        "length",
        error="none given: exact for the weights and that batch. The effective rate is the learning rate of the "
        "direction of scale-invariant weights under SGD alone; the equilibrium angle is known for SGD with weight "
        "decay alone",
        reference="van Laarhoven, arXiv:1706.05350; Wan et al., NeurIPS 2021, arXiv:2006.08419",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.weight_dynamics,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    rates = of_run[of_run["name"] == "effective_rate"]
    first, last = rates.iloc[0], rates.iloc[-1]
    if np.isnan(last["value"]):
        return f"the effective learning rate is not a number at step {last['step']}"
    words = f"the effective learning rate went from {number(first['value'])} to {number(last['value'])} at step "
    words += f"{last['step']} (median of {last['layers']} layers)" if last["layers"] > 1 else f"{last['step']}"
    angles = of_run[of_run["name"] == "angle"]
    return words + ("; no step of the optimizer was recorded" if angles.empty else _turn(of_run, angles.iloc[-1]))


def _turn(of_run: pd.DataFrame, last: pd.Series) -> str:
    if np.isnan(last["value"]):
        return f", and the angle of step {last['step']} is not a number"
    words = f", and step {last['step']} turned the weights by {number(last['value'])} rad"
    settled = of_run[(of_run["name"] == "angle_equilibrium") & (of_run["step"] == last["step"])]["value"]
    if settled.empty:
        return words
    goal = float(settled.iloc[0])
    return f"{words}, {number(last['value'] / goal)} times the {number(goal)} at which scale-invariant weights settle"


def _invariance(run: Run) -> str:
    last = latest(rows(run, PROBE))
    share = last.loc[last["name"] == "invariance", "value"].to_numpy(float)
    if not share.size:
        return ""
    free, lost = int((share < INVARIANT).sum()), int(np.isnan(share).sum())
    gone = f" ({lost} not known)" if lost else ""
    return f"; the loss does not depend on the weights' length in {free} of {share.size} layers{gone}"
