"""what_surrounds_the_network: how the loss rises in a plane or on a line through the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["what_surrounds_the_network"]

HEADING = "How does the loss look around the network?"
PROBE = "loss_surface"

FAR = {
    "random": "the length of the filters",
    "eigenvectors": "a length of 1",
    "update": "the length of the last update",
}


def what_surrounds_the_network(runs: Mapping[str, Run]) -> Question:
    """Answer from the last surface: where it is lowest, and how far it rises.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.loss_surface_data(runs)
    except NotRecordedError:
        return Question(HEADING, 36, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE,
        estimator="the loss itself at every point of a grid; random directions are filter-normalized: each filter as "
        "long as the network's own; parameters move, and running statistics do not",
        error="exact for these samples, of others it says nothing; the plane is one slice, and another one may look "
        "different",
        reference="Li, Xu, Taylor, Studer and Goldstein, NeurIPS 2018, arXiv:1712.09913",
    )  # fmt: skip
    planes = (plot.loss_surface, plot.loss_surface_3d) if table["y"].notna().any() else (plot.loss_surface,)
    return Question(HEADING, 36, PROBE, said, planes, table, note)


def _say(rows: pd.DataFrame) -> str:
    away = np.hypot(rows["x"], rows["y"].fillna(0))
    center = rows.iloc[int(np.argmin(away))]
    known = rows[np.isfinite(rows["value"])]
    if known.empty or np.isnan(center["value"]):
        return f"the loss is not a number at the network itself, at step {center['step']}"
    lowest, highest = (known.loc[known["value"].idxmin()], known.loc[known["value"].idxmax()])
    unit = FAR.get(center["directions"], "the length of the directions")
    words = f"at step {center['step']} the loss rises from {number(center['value'])} to at most "
    words += f"{number(highest['value'])} within {number(float(rows['x'].max()))} times {unit}"
    gone = len(rows) - len(known)
    words += f", and is not finite at {gone} of {len(rows)} points" if gone else ""
    if lowest["value"] < center["value"]:
        where = number(float(away[known["value"].idxmin()]))
        return f"{words}; it is lower, {number(lowest['value'])}, at a distance of {where}"
    return f"{words}; it is nowhere lower than at the network itself"
