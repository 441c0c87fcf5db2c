"""how_many_directions_curve: the shares of flat and of curved directions of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from normlens import plot
from normlens.plot.spectral_density import percent
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["how_many_directions_curve"]

HEADING = "How many directions of the loss are flat, and how many curve?"
PROBE = "hessian_spectrum"


def how_many_directions_curve(runs: Mapping[str, Run]) -> Question:
    """Answer from the last density of the Hessian's eigenvalues.

    Args:
        runs: runs by name.
    """
    try:
        table = plot.spectral_density_data(runs)
    except NotRecordedError:
        absence = f"{unanswered(runs, PROBE)} The density costs extra: set its density_probes."
        return Question(HEADING, 33, PROBE, absence=absence)
    said = {str(name): sentence(_say(rows.iloc[0])) for name, rows in table.groupby("run", sort=False)}
    note = method(
        runs, PROBE, "density",
        estimator="stochastic Lanczos quadrature with full reorthogonalization: eigenvalues of small Lanczos matrices "
        "begun with random vectors, drawn as Gaussians; within the resolution around zero nothing is told apart",
        error="spread over the random vectors, and for the shares the bounds of the quadrature; the cost is that of "
        "all measurements of the spectrum, with and without a density",
        reference="Ghorbani, Krishnan and Xiao, ICML 2019, algorithm 1; Ubaru, Chen and Saad, SIMAX 2017",
    )  # fmt: skip
    return Question(HEADING, 33, PROBE, said, (plot.spectral_density,), table, note)


def _say(row: pd.Series) -> str:
    span = f"eigenvalues from {number(row['smallest'])} to {number(row['largest'])}"
    if pd.isna(row["share_flat"]):
        return f"at step {row['step']} the Hessian has {span}; how many of them are zero the estimate cannot say"
    flat = f"at step {row['step']}, {percent(row)} of all directions are flat: within ±{number(row['resolution'])} of "
    return f"{flat}zero, which the estimate does not tell from it; {span}"
