"""does_the_ic_layer_make_neurons_independent: mutual information before and behind the gates of each dropout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows, scalar
from normlens.report.svg import Draw
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["does_the_ic_layer_make_neurons_independent"]

HEADING = "Does the IC layer make neurons independent?"
ORDER = 62
PROBE = "mutual_information"
NOTHING = "the model has no dropout and no independent-component layer that is on, so there are no gates"
LISTED = 3  # layers named in a sentence


def does_the_ic_layer_make_neurons_independent(runs: Mapping[str, Run]) -> Question:
    """Answer from the mutual information of pairs of channels at the last step, before and behind each dropout.

    Args:
        runs: runs by name.
    """
    said = {str(name): sentence(NOTHING) for name, run in named(runs).items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.information_ratio_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    every = named(runs)
    for name, of_run in table.groupby("run", sort=False):
        said[str(name)] = sentence(_say(of_run) + _zeros(every[str(name)]) + _labels(every[str(name)]))
    note = method(
        runs, PROBE, "ratio", "within_ratio",
        estimator="a pass in train mode, masks drawn, whatever the mode of the run; one position of each sample; the "
        "chain rule over atoms with nearest neighbors (k = 3). The ratio is that of the sums over the pairs, behind "
        "the gates and before them; the theory's value is keep², and for neighbors in a channel that share a gate keep "
        "plus the gate's entropy over the information before. With values that are zero before the gates it is an "
        "upper bound, since those hide their gates",
        error="one standard error, samples being independent (delta method), times 1.3 for what neighbors have in "
        "common",
        reference="Chen et al., arXiv:1905.05928; Kraskov et al., 2004; Ross, 2014",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, _figures(runs), table, note)


def _figures(runs: Mapping[str, Run]) -> tuple[Draw, ...]:
    """The matrix is there where it was asked for, and pairs where layers have two channels."""
    figures: tuple[Draw, ...] = (plot.information_ratio,)
    optional = (
        (plot.mutual_information, plot.mutual_information_data),
        (plot.mutual_information_matrix, plot.mutual_information_matrix_data),
    )
    for figure, data in optional:
        try:
            data(runs)
        except NotRecordedError:
            continue
        figures += (figure,)
    return figures


def _say(of_run: pd.DataFrame) -> str:
    step = of_run["step"].iloc[0]
    parts = []
    for kind, words in (("ratio", "two channels"), ("within_ratio", "neighbors in a channel")):
        found = of_run[of_run["name"] == kind]
        known = found[np.isfinite(found["value"])]
        if known.empty:
            continue
        listed = [_left(row) for _, row in known.head(LISTED).iterrows()]
        more = len(known) - len(listed)
        listed += [f"and so on for {more} more" if more > 1 else "and one more"] if more else []
        parts.append(f"of what {words} tell of each other {', '.join(listed)}")
    if not parts:
        return f"at step {step}, pairs tell too little of each other before the gates to say what these leave of it"
    unknown = int((~np.isfinite(of_run["value"])).sum())
    lost = (
        f"; {unknown} of {len(of_run)} ratios are not known, for want of information before the gates"
        if unknown
        else ""
    )
    return f"at step {step}, {'; '.join(parts)}{lost}"


def _left(row: pd.Series) -> str:
    error = f" ± {number(100 * row['error'])}" if np.isfinite(row["error"]) else ""
    theory = f" (theory {number(100 * row['predicted'])})" if np.isfinite(row["predicted"]) else ""
    return f"{number(100 * row['value'])}{error} % is left behind {row['layer']}{theory}"


def _zeros(run: Run) -> str:
    last = latest(rows(run, PROBE))
    zeros = last[(last["name"] == "zeros") & (last["value"] > 0.01)]
    if zeros.empty:
        return ""
    most = zeros.iloc[int(zeros["value"].to_numpy(float).argmax())]
    return f"; up to {number(100 * most['value'])} % of the values before the gates are zero and hide them"


def _labels(run: Run) -> str:
    last = latest(rows(run, PROBE))
    kept = last[(last["name"] == "label_ratio") & np.isfinite(last["value"])]
    if kept.empty:
        return ""
    least = kept.iloc[int(kept["value"].to_numpy(float).argmin())]
    return f"; of what a value tells of the label {number(100 * least['value'])} % is left behind {least['layer']}"
