"""are_gradients_canceling: what is left of the contributions of samples and places to a weight's gradient."""

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

__all__ = ["are_gradients_canceling"]

HEADING = "Do the gradients of samples and places cancel?"
ORDER = 46
PROBE = "cancellation"
NOTHING = "the model calls no linear layer or convolution whose gradient could cancel"


def are_gradients_canceling(runs: Mapping[str, Run]) -> Question:
    """Answer from the sums of magnitudes over the magnitudes of sums at the last step.

    Args:
        runs: runs by name.
    """
    said = {str(name): sentence(NOTHING) for name, run in named(runs).items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.cancellation_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    said |= {str(name): sentence(_say(of_run)) for name, of_run in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "cancellation",
        estimator="contributions of each sample and each place to the gradient of weights drawn at random, on one "
        "probe batch whose statistics the normalizations use whatever the mode: the mean sum of their magnitudes over "
        "the mean magnitude of their sum, over all, over the places within each sample, over the samples at each place",
        error="one standard error of the draw of the weights; of other batches it knows nothing",
        reference="Bjorck, Gomes, Selman and Weinberger, NeurIPS 2018, arXiv:1806.02375",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.cancellation,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    step = of_run["step"].iloc[0]
    by_layer = of_run.pivot(index="layer", columns="name", values="value")
    known = by_layer[np.isfinite(by_layer["cancellation"])]
    if known.empty:
        return f"at step {step} nothing is left, or it is not a number, in any of {len(by_layer)} layers"
    most, least = known["cancellation"].idxmax(), known["cancellation"].idxmin()
    words = f"at step {step} 1 part in {number(known['cancellation'].max())} of the contributions is left in {most}"
    words += "" if most == least else f" and 1 in {number(known['cancellation'].min())} in {least}"
    lost = len(by_layer) - len(known)
    return words + _within(known.loc[most]) + (f"; {lost} of {len(by_layer)} layers are not finite" if lost else "")


def _within(layer: pd.Series) -> str:
    """Say of the layer where most cancels what its places and what its samples take from each other."""
    places, samples = (float(layer.get(name, np.nan)) for name in ("within_samples", "across_samples"))
    if not np.isfinite(places + samples):
        return ""
    return f"; there the places of a sample leave 1 in {number(places)}, the samples at a place 1 in {number(samples)}"
