"""can_the_targets_be_reached: the part of the targets outside of what the parameters move, to first order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.representation_alignment import ALIGNED
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["can_the_targets_be_reached"]

HEADING = "Could the targets be reached along the gradients?"
ORDER = 80
PROBE = "representation_alignment"
OF = {"residual": "all parameters", "residual_last": "the last layer alone"}


def can_the_targets_be_reached(runs: Mapping[str, Run]) -> Question:
    """Answer from the last residuals of alignment, of all parameters and of the last layer's.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.representation_alignment_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, absence=unanswered(runs, PROBE))
    said = {str(name): sentence(_say(rows)) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, *OF,
        estimator="length of the part of the targets (class indices as one-hot rows) outside of the range of the "
        "outputs' Jacobian, over the targets' length, in float64 on one probe batch",
        error="that of the singular values; those up to the larger dimension times eps of the largest count as zero. "
        "More samples are harder to reach: the rank cannot exceed the number of parameters. A classifier's loss asks "
        "for no particular outputs, and weight decay voids the theorems",
        reference="Kawaguchi, Zhang and Deng, Neural Computation 34(4), 2022, arXiv:2106.14836",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.representation_alignment,), table, note)


def _say(rows: pd.DataFrame) -> str:
    lasts = {name: rows[rows["name"] == name].iloc[-1] for name in OF if (rows["name"] == name).any()}
    known = {name: row for name, row in lasts.items() if np.isfinite(row["value"])}
    step = max(row["step"] for row in lasts.values())
    if not known:
        return f"the residual is not a number at step {step}"
    reach = "; ".join(f"{OF[name]} can reach {_part(row)}" for name, row in known.items())
    if "residual" in known:
        whole = float(known["residual"]["value"])
        begin = "yes" if whole < ALIGNED else "no" if whole > 1 - ALIGNED else "in part"
        return f"{begin}, at step {step} {reach}"
    why = "the residual is not a number" if "residual" in lasts else "it was not measured"
    return f"at step {step} {reach}; of all parameters {why}"


def _part(row: pd.Series) -> str:
    rank = "" if np.isnan(row["rank"]) else f", rank {row['rank']:.0f} of {row['rows']:.0f}"
    size = f"(n = {row['n']}{rank})"
    if row["value"] < ALIGNED:
        return f"all of them {size}"
    if row["value"] > 1 - ALIGNED:
        return f"none of them {size}"
    return f"all but {number(100 * row['value'])} % of their length {size}"
