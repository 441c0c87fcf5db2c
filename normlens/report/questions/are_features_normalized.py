"""are_features_normalized: the distance of each layer's statistics from batch norm's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["are_features_normalized"]

HEADING = "How far are the features from batch norm's?"
PROBE = "elimination"


def are_features_normalized(runs: Mapping[str, Run]) -> Question:
    """Answer from StatDiff, which is zero for batch norm by construction.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.statdiff_data(runs)
    except NotRecordedError:
        return Question(HEADING, 50, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "statdiff_mean", "statdiff_std",
        estimator="mean over channels of |mu| and of |sigma - 1| of the normalized features before the last affine "
        "map, statistics over samples and positions",
        error="none given",
        reference="after the statistical difference of S. Qiao et al. 2019, arXiv:1911.09738; the formula is ours",
    )  # fmt: skip
    return Question(HEADING, 50, PROBE, said, (plot.statdiff,), table, note)


def _say(rows: pd.DataFrame) -> str:
    finite = rows[np.isfinite(rows["value"])]
    if len(finite) < len(rows):
        return f"{len(rows) - len(finite)} of {len(rows)} statistics are not finite"
    worst = finite.iloc[int(np.argmax(finite["value"]))]
    what = "mean" if worst["name"] == "statdiff_mean" else "deviation"
    return f"at most {number(float(worst['value']))} (the {what} of {worst['layer'] or 'the network'})"
