"""are_layer_inputs_ill_conditioned: the condition of each layer's input, as it is, centered and normalized."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import scalar
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["are_layer_inputs_ill_conditioned"]

HEADING = "Are the layers' inputs ill-conditioned?"
ORDER = 35
PROBE = "activation_condition"
NOTHING = "the model has no layer behind another one whose input could be measured"


def are_layer_inputs_ill_conditioned(runs: Mapping[str, Run]) -> Question:
    """Answer from the largest condition number of a layer's input at the last step.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {name: sentence(NOTHING) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.activation_condition_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    said |= {str(name): sentence(_say(of_run)) for name, of_run in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "kappa_raw",
        estimator="largest over smallest singular value above the tolerance of what enters a layer (of a convolution "
        "its patches) with a column of ones for the bias; as it is, centered, and divided by the deviations",
        error="none given: exact for the rows that were drawn; the tolerance and the directions below it are in the "
        "table. The square bounds the condition of a neuron's Hessian, times that of the loss's second derivatives",
        reference="Lange, Helfrich and Ye, Batch Normalization Preconditioning, JMLR 23(72), 2022, section 3",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.activation_condition,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    step, layers = of_run["step"].iloc[0], of_run["layer"].nunique()
    wide = of_run.pivot_table(index="layer", columns="name", values=["value", "nullity"], dropna=False)
    known = wide[np.isfinite(wide["value", "kappa_raw"])]
    if known.empty:
        return f"the condition number is not finite in any of {layers} layers at step {step}"
    worst = known.loc[known["value", "kappa_raw"].idxmax()]
    raw, centered, normalized = (worst["value", kind] for kind in ("kappa_raw", "kappa_centered", "kappa_normalized"))
    words = f"the worst input has a condition number of {number(raw)} ({worst.name or 'the network'}, step {step})"
    null = worst["nullity", "kappa_raw"]
    words += f", {null:.0f} direction{'' if null == 1 else 's'} below the tolerance not counted" if null > 0 else ""
    gain = f"centering makes it {number(centered)} and normalizing {number(normalized)}"
    return f"{words}; {gain}{_verdict(raw, centered, normalized)}"


def _verdict(raw: float, centered: float, normalized: float) -> str:
    best = min(centered, normalized)
    if best * 2 > raw:
        return ", so that neither would help much"
    return f": {'most of it is its mean' if raw > 2 * centered else 'its scales differ, rather than its mean'}"
