"""how_singular_is_the_fisher_matrix: null directions of each hidden layer, against what its singular units predict."""

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

__all__ = ["how_singular_is_the_fisher_matrix"]

HEADING = "How singular is the Fisher matrix?"
ORDER = 52
PROBE = "singularity"
KINDS = {
    "dead": "dead", "outgoing": "without outgoing weights", "incoming": "silent", "overlapping": "overlapping",
    "seldom": "on too seldom to see all",
}  # fmt: skip
NO_GAP = 10
"""A smallest kept eigenvalue within this factor of the tolerance: another tolerance would give another nullity."""


def how_singular_is_the_fisher_matrix(runs: Mapping[str, Run]) -> Question:
    """Answer with the hidden layer that has most null directions beyond what its structure and the samples make.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {str(name): sentence(_nothing(run)) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.singularity_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    said |= {str(name): sentence(_say(every[str(name)])) for name in table["run"].unique()}
    note = method(
        runs, PROBE, "nullity",
        estimator="exact eigenvalues, in float64 and eval mode, of each hidden layer's block (incoming and outgoing "
        "weights of its units) of the matrix whose null space is that of the Fisher matrix; null is what is up to the "
        "stated tolerance of the largest. Predicted from each unit alone: dead, without outgoing weights, silent, "
        "overlapping with another; regular is what inputs that are always zero, scales and a common shift make",
        error="none given: exact for these samples and this tolerance; too few samples force a nullity, which is told "
        "apart",
        reference="Qiao et al., arXiv:1911.09738; Wei et al., Neural Computation 20(3), 2008. The Hessian is as "
        "singular at critical points alone, and for dead units",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.singularity,), table, note)


def _nothing(run: Run) -> str:
    large = scalar(run, PROBE, "too_large")
    if large > 0:
        many = f"{large:.0f} hidden layers are" if large > 1 else "the one hidden layer that is known is"
        return f"{many} too large to be measured; raise max_parameters"
    return "the model's graph shows no hidden layer between two plain weight layers, so there is no block to look at"


def _say(run: Run) -> str:
    last = latest(rows(run, PROBE))
    layers = last[last["layer"] != ""]
    wide = layers.pivot_table(index="layer", columns="name", values="value", sort=False)
    floor = wide["forced"] if "regular" not in wide else np.fmax(wide["regular"], wide["forced"])
    share = (wide["nullity"] - floor) / wide["parameters"]
    place = int(np.argmax(share))
    worst = wide.iloc[place]
    words = f"at step {last['step'].iloc[0]}, {_count(worst, str(wide.index[place]))}{_known(worst)}"
    words += _kinds(worst) + _tolerance(run, worst) + _forced(wide)
    large = scalar(run, PROBE, "too_large")
    return words + (f"; {large:.0f} more hidden layers are too large to be measured" if large > 0 else "")


def _known(worst: pd.Series) -> str:
    """Say what is regular and what was predicted, where that is known."""
    if np.isnan(worst.get("predicted", np.nan)):
        return ""
    return f", where {worst['predicted']:.0f} are predicted and {worst['regular']:.0f} are regular"


def _count(worst: pd.Series, layer: str) -> str:
    whole = worst["units"] == worst["channels"]
    chosen = "" if whole else f" (those of {worst['units']:.0f} of {worst['channels']:.0f} units)"
    share = f"{worst['nullity']:.0f} of {worst['parameters']:.0f} directions{chosen}"
    return f"{share} are null in {layer or 'the network'}"


def _kinds(worst: pd.Series) -> str:
    found = [f"{worst[kind]:.0f} {words}" for kind, words in KINDS.items() if worst.get(kind, 0) > 0]
    return f"; units: {', '.join(found)}" if found else ""


def _tolerance(run: Run, worst: pd.Series) -> str:
    tolerance = scalar(run, PROBE, "tolerance")
    if np.isnan(tolerance):
        return ""
    near = 0 < worst.get("smallest", 0) < NO_GAP * tolerance
    return f"; at a tolerance of {tolerance:g}" + (
        f", with other eigenvalues down to {number(float(worst['smallest']))}: there is no gap" if near else ""
    )


def _forced(wide: pd.DataFrame) -> str:
    forced = wide[wide["forced"] > 0]
    if forced.empty:
        return ""
    return f"; too few samples force {', '.join(f'{v:.0f} in {k}' for k, v in forced['forced'].items())}"
