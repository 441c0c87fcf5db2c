"""is_it_at_the_edge_of_stability: the sharpness of the loss against what the optimizer's step size stands."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from normlens import plot
from normlens.plot.edge_of_stability import AT_EDGE
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["is_it_at_the_edge_of_stability"]

HEADING = "Is the learning rate at the edge of stability?"
PROBE = "edge_of_stability"


def is_it_at_the_edge_of_stability(runs: Mapping[str, Run]) -> Question:
    """Answer from the last ratio of the sharpness to the largest that the optimizer stands.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.edge_of_stability_data(runs)
    except NotRecordedError:
        return Question(HEADING, 34, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "ratio",
        estimator="largest eigenvalue of the Hessian on one fixed probe batch, preconditioned as the optimizer does, "
        "over the largest that its step size stands on a quadratic loss (gradient descent: 2 over the learning rate)",
        error="that of the eigenvalue; of what other batches would show it knows nothing, and the theory is one of "
        "full-batch training: with small batches the sharpness settles below the edge",
        reference="Cohen, Kaur, Li, Kolter and Talwalkar, ICLR 2021, arXiv:2103.00065; for adaptive optimizers "
        "arXiv:2207.14484",
    )  # fmt: skip
    return Question(HEADING, 34, PROBE, said, (plot.edge_of_stability,), table, note)


def _say(rows: pd.DataFrame) -> str:
    known = rows[rows["ratio"].notna()]
    if known.empty:
        return f"the sharpness is not a number at any of {len(rows)} measurements"
    last = known.iloc[-1]
    error = "" if pd.isna(last["error"]) else f" ± {number(float(last['error']))}"
    at = f"{number(float(last['ratio']))}{error} of the stable limit at step {last['step']}"
    since = known[known["ratio"] >= AT_EDGE]
    gone = "" if len(known) == len(rows) else f"; at {len(rows) - len(known)} of {len(rows)} steps it is not a number"
    if last["ratio"] >= AT_EDGE:
        return f"yes, since step {_since(known)} the sharpness is there: {at}{gone}"
    if len(since):
        return f"not any more, the sharpness was there at step {since['step'].iloc[-1]} and is {at}{gone}"
    return f"no, the sharpness is {at}{gone}"


def _since(rows: pd.DataFrame) -> int:
    """Return the first step of the last unbroken stretch at the edge."""
    below = rows.loc[rows["ratio"] < AT_EDGE, "step"]
    return int(rows.loc[rows["step"] > (below.max() if len(below) else -1), "step"].min())
