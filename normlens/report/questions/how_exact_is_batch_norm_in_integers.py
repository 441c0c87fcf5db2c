"""how_exact_is_batch_norm_in_integers: the error of quantized batch norms in steps of their outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from normlens import plot
from normlens.plot.collect import named
from normlens.plot.quantization_error import ROUNDING
from normlens.plot.style import number
from normlens.report.question import Question, method, sentence, unanswered
from normlens.report.readings import latest, rows, scalar
from normlens.run.errors import NotRecordedError
from normlens.run.store import Run

__all__ = ["how_exact_is_batch_norm_in_integers"]

HEADING = "How exact is batch norm in integers?"
ORDER = 110
PROBE = "quantization_error"
NOTHING = "the model has no batch norm with one scale and one shift per channel, so there is nothing to quantize"


def how_exact_is_batch_norm_in_integers(runs: Mapping[str, Run]) -> Question:
    """Answer from the errors of the quantized batch norms at the last step.

    Args:
        runs: runs by name.
    """
    said = {str(name): sentence(NOTHING) for name, run in named(runs).items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.quantization_error_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    every = named(runs)
    measured = table.groupby("run", sort=False)
    said |= {str(name): sentence(_say(of_run) + _details(every[str(name)])) for name, of_run in measured}
    note = method(
        runs, PROBE, "rms", "max",
        estimator="each batch norm in integers on its rounded inputs, less the one in real numbers, in eval mode on "
        "the probe data, whatever the mode of the run; one scale for all inputs and one for all outputs of a layer, "
        "from their largest magnitudes. In steps of the output (LSB)",
        error="none given: exact for these data; others may leave the observed range and be clipped",
        reference="Lin et al., arXiv:2008.13128",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.quantization_error,), table, note)


def _say(of_run: pd.DataFrame) -> str:
    step, layers = of_run["step"].iloc[0], of_run["layer"].nunique()
    known = of_run[np.isfinite(of_run["value"])]
    worst = {name: known.loc[found.idxmax()] for name, found in known.groupby("name")["value"]}
    if set(worst) != {"rms", "max"}:
        return f"the error is not finite in any of {layers} batch norms at step {step}"
    many = f"{layers} batch norms are" if layers > 1 else "1 batch norm is"
    words = f"at step {step}, {many} off by at most {_steps(worst['max'])}, and by an rms of at most "
    lost = len(of_run) - len(known)
    gone = f"; {lost} of {len(of_run)} errors are not finite" if lost else ""
    return f"{words}{_steps(worst['rms'])}, where rounding the output alone makes {number(ROUNDING)}{gone}"


def _steps(row: pd.Series) -> str:
    return f"{number(row['value'])} LSB ({row['layer'] or 'the network'})"


def _details(run: Run) -> str:
    last = latest(rows(run, PROBE))
    inexact = int(last.loc[last["name"] == "inexact", "value"].sum())
    probes = run.header.get("probes")
    bits = probes.get(PROBE, {}).get("bits") if isinstance(probes, dict) else None
    words = f"; inputs and outputs have {bits} bits" if bits else ""
    return words + (f"; for {inexact} channels a shift by 31 is too small to be exact" if inexact else "")
