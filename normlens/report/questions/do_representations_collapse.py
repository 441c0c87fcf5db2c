"""do_representations_collapse: the effective rank of the samples' representations, layer by layer."""

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

__all__ = ["do_representations_collapse"]

HEADING = "Do the representations collapse?"
ORDER = 68
PROBE = "rank_collapse"
NOTHING = "the model has no nonlinearity that is a module and no layer behind another, so there is nothing to look at"
NARROW = 1.5  # directions: three classes already need two. Late layers of a classifier have about one for each class


def do_representations_collapse(runs: Mapping[str, Run]) -> Question:
    """Answer from the smallest share of directions that the samples spread over at the last step.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {name: sentence(NOTHING) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.rank_collapse_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    said |= {str(name): sentence(_say(of_run)) for name, of_run in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "effective_rank",
        estimator="effective rank of the samples where they leave a nonlinearity, channels at all positions: "
        "squared trace of their second moments over the squared Frobenius norm, about the mean and with it",
        error="standard error of the draw of the samples, by the delta method; too large where a layer is wider than "
        "there are samples. The rank grows with their number: compare runs at the same",
        reference="Daneshmand, Kohler, Bach, Hofmann and Lucchi, NeurIPS 2020, arXiv:2003.01652",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.rank_collapse,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    step, layers = of_run["step"].iloc[0], of_run["layer"].nunique()
    about = of_run[of_run["name"] == "effective_rank_centered"]
    gone = list(about.loc[about["value"] == 0, "layer"])
    if gone:
        which = f"{len(gone)} of {layers} layers ({gone[0] or 'the network'}{', …' if len(gone) > 1 else ''})"
        return f"yes, at step {step} all samples are the same in {which}"
    known = about[np.isfinite(about["value"])]
    if known.empty:
        return f"the rank is not finite in any of {layers} layers at step {step}"
    worst = known.loc[known["value"].idxmin()]
    begin = "nearly" if known["value"].min() < NARROW else "no"
    spread = "" if np.isnan(worst["error"]) else f" ± {number(worst['error'])}"
    return (
        f"{begin}: at step {step} the narrowest layer ({worst['layer'] or 'the network'}) spreads {worst['n']} samples "
        f"over {number(worst['value'])}{spread} of {worst['largest']:.0f} directions about their mean, which holds "
        f"{number(100 * worst['mean_share'])} % of their energy"
    )
