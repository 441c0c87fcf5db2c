"""how_ill_conditioned: the largest curvature of the loss, and its ratio to the smallest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["how_ill_conditioned"]

HEADING = "How steep and how ill-conditioned is the loss?"
PROBE = "condition_number"
SATURATED = 0.3  # of 1/tolerance, the largest number that can come out: so near to it, there is no gap at the tolerance


def how_ill_conditioned(runs: Mapping[str, Run]) -> Question:
    """Answer from the last condition number, with the largest curvature where the spectrum was measured, too.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.condition_number_data(runs)
    except NotRecordedError:
        return Question(HEADING, 32, PROBE, absence=unanswered(runs, PROBE))
    steepest = _steepest(runs)
    said = {
        str(name): sentence(_say(rows) + _curvature(steepest, str(name)))
        for name, rows in table.groupby("run", sort=False)
    }
    note = method(
        runs, PROBE, "kappa", "kappa_lower",
        estimator="largest eigenvalue over the smallest one whose magnitude is above the tolerance times the largest, "
        "of the curvature of the loss on one fixed probe batch; the pale band shows what other tolerances would give",
        error="a lower bound, marked ≥, where the smallest eigenvalue was not reached; the largest eigenvalue is "
        "within its recorded residual",
        reference="Lange, Helfrich and Ye, Batch Normalization Preconditioning, JMLR 2022, for why it matters",
    )  # fmt: skip
    figures = (plot.hessian_spectrum, plot.condition_number) if steepest is not None else (plot.condition_number,)
    return Question(HEADING, 32, PROBE, said, figures, table, note)


def _steepest(runs: Mapping[str, Run]) -> pd.DataFrame | None:
    try:
        table = plot.hessian_spectrum_data(runs)
    except NotRecordedError:
        return None
    return table[(table["end"] == "top") & (table["index"] == 0)]


def _say(rows: pd.DataFrame) -> str:
    known = rows[rows["value"].notna()]
    if known.empty:
        return f"the condition number is not a number at any of {len(rows)} measurements"
    first, last = known.iloc[0], known.iloc[-1]
    if len(known) < len(rows) and np.isnan(rows["value"].iloc[-1]):
        return f"the condition number was {_number(last)} at step {last['step']} and is not a number since"
    words = f"the condition number went from {_number(first)} to {_number(last)}"
    if last["value"] * last["tolerance"] > SATURATED:
        words += (
            f", which is all that a tolerance of {last['tolerance']:g} can show: smaller eigenvalues go on below it"
        )
    elif not np.isnan(last["tolerance"]):
        words += f" at a tolerance of {last['tolerance']:g}"
    if not np.isnan(last["nullity"]):
        words += f", {last['nullity']:.0f} flat directions not counted"
    if last["negative"] > 0:
        words += f", {last['negative']:.0f} of negative curvature"
    return words


def _number(row: pd.Series) -> str:
    return ("at least " if row["bound"] else "") + number(float(row["value"]))


def _curvature(table: pd.DataFrame | None, name: str) -> str:
    rows = pd.DataFrame() if table is None else table[(table["run"] == name) & table["value"].notna()]
    if rows.empty:
        return ""
    last = rows.iloc[-1]
    error = "" if np.isnan(last["error"]) else f" ± {number(float(last['error']))}"
    return f"; the largest curvature was {number(float(last['value']))}{error} at step {last['step']}"
