"""do_gradients_vanish: the norm of the gradient before and after, and its growth from layer to layer at first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import rows as recorded
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["do_gradients_vanish"]

HEADING = "Do gradients vanish or explode?"
PROBE = "training_curve"
FLOW = "gradient_flow"
BY_LAYER = (
    "; layer by layer the mean square of the gradient by what enters it, with the batch's statistics in normalizations"
)
THEORY = "; the growth of wide networks at random weights: Yang et al., ICLR 2019, arXiv:1902.08129"


def do_gradients_vanish(runs: Mapping[str, Run]) -> Question:
    """Answer from the norm of the gradient by all parameters, and the growth by the activations before training.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.gradient_norm_data(runs)
    except NotRecordedError:
        return Question(HEADING, 40, PROBE, absence=unanswered(runs, PROBE))
    every = named(runs)
    said = {
        str(name): sentence(_say(rows) + _flow(every[str(name)])) for name, rows in table.groupby("run", sort=False)
    }
    flows = any(len(recorded(run, FLOW, "energy")) for run in every.values())
    figures = (plot.gradient_norm, plot.gradient_flow) if flows else (plot.gradient_norm,)
    note = method(
        runs, PROBE, "gradient_norm",
        estimator="Euclidean norm over all trainable parameters of the gradient on one fixed probe batch, and of the "
        "last optimizer step" + (BY_LAYER if flows else ""),
        error="none given: exact for that batch" + ("; of the growth that of the mean over layers" if flows else ""),
        reference="none needed: these are the definitions" + (THEORY if flows else ""),
    )  # fmt: skip
    return Question(HEADING, 40, PROBE, said, figures, table, note)


def _say(rows: pd.DataFrame) -> str:
    norms = rows[rows["name"] == "gradient_norm"]
    bad = norms[~np.isfinite(norms["value"])]
    if len(bad):
        return f"the gradient is not finite at step {bad['step'].iloc[0]}, the first of {len(bad)} such steps"
    first, last = (float(norms["value"].iloc[i]) for i in (0, -1))
    peak = norms.iloc[int(np.argmax(norms["value"]))]
    top = f"its largest value was {number(float(peak['value']))} at step {peak['step']}"
    return f"the gradient's norm went from {number(first)} to {number(last)}, {top}"


def _flow(run: Run) -> str:
    """Say by which factor per layer the squared gradient grew at the first measurement, and what is predicted."""
    found = recorded(run, FLOW, "growth", "predicted")
    first = found[found["step"] == found["step"].min()].set_index("name")
    if "growth" not in first.index or not np.isfinite(first["value"]["growth"]):
        return ""
    value, error = (float(first[column]["growth"]) for column in ("value", "error"))
    spread = f" ± {number(error)}" if np.isfinite(error) else ""
    words = (
        f"; by the activations its square grew at step {first['step']['growth']} × {number(value)}{spread} per layer "
    )
    known = f", × {number(float(first['value']['predicted']))} in theory" if "predicted" in first.index else ""
    return f"{words}towards the input{known}"
