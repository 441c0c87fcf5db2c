"""what_does_batch_norm_s_fisher_vector_see: the mean block alone, and in which channels that misses modes or tails."""

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

__all__ = ["what_does_batch_norm_s_fisher_vector_see"]

HEADING = "What does batch norm's Fisher vector see?"
ORDER = 58
PROBE = "fisher_vector"
NOTHING = "the model has neither normalizations nor nonlinearities that are modules, so there is nothing to measure"


def what_does_batch_norm_s_fisher_vector_see(runs: Mapping[str, Run]) -> Question:
    """Answer from the modes, the energy of the scale block and batch norm's residual at the last step.

    Args:
        runs: runs by name.
    """
    every = named(runs)
    said = {str(name): sentence(NOTHING) for name, run in every.items() if scalar(run, PROBE, "layers") == 0}
    try:
        table = plot.fisher_vector_data(runs)
    except NotRecordedError:
        return Question(HEADING, ORDER, PROBE, said, absence="" if said else unanswered(runs, PROBE))
    for name, of_run in table.groupby("run", sort=False):
        last = latest(rows(every[str(name)], PROBE))
        words = (_modes(of_run), _energy(last), _residual(last), _diagonal(last))
        said[str(name)] = sentence("; ".join(filter(None, words)))
    note = method(
        runs, PROBE, "multimodal", "sigma_energy",
        estimator="one-dimensional mixtures of Gaussians by EM on histograms of each channel's values before the "
        "normalization (or the nonlinearity, where there is none), their number by BIC with the samples, not the "
        "positions, as independent values; modes are parted by a valley of half the lower one's height. The scale "
        "block's energy is (kurtosis - 1)/2; 1 for a Gaussian. Batch norm runs again in train mode and float64",
        error="of the energy, one standard error with samples as independent; of the diagonal approximation, Monte "
        "Carlo; none known for modes: BIC may miss some and rarely invents one",
        reference="Kalayeh and Shah, arXiv:1806.02892; Sánchez et al., IJCV 105 (2013); Schwarz, Ann. Stat. 6 (1978)",
    )  # fmt: skip
    return Question(HEADING, ORDER, PROBE, said, (plot.fisher_vector,), table, note)


def _modes(of_run: pd.DataFrame) -> str:
    step, layers = of_run["step"].iloc[0], of_run["layer"].nunique()
    known = of_run[np.isfinite(of_run["value"]) & np.isfinite(of_run["channels"])]
    if known.empty:
        return f"at step {step}, the distributions are not finite in any of {layers} layers"
    counts = (known["value"] * known["channels"]).round().astype(int).groupby(known["name"]).sum()
    of = int(known.loc[known["name"] == "multimodal", "channels"].sum())
    words = f"at step {step}, {counts.get('multimodal', 0)} of {of} channels show several modes, and for "
    return words + f"{counts.get('mixed', 0)} one Gaussian is not enough"


def _energy(last: pd.DataFrame) -> str:
    """Say in which layer the block that batch norm leaves out is furthest from a Gaussian's."""
    found = _finite(last, "sigma_energy_mean")
    if found.empty:
        return ""
    worst = found.iloc[int(np.argmax(np.abs(np.log(found["value"].clip(lower=1e-9)))))]
    error = f" ± {number(worst['error'])}" if np.isfinite(worst["error"]) else ""
    where = worst["layer"] or "the network"
    return f"the scale block, which batch norm leaves out, has energy {number(worst['value'])}{error} in {where}" + (
        ", the furthest from a Gaussian's 1" if len(found) > 1 else ", where a Gaussian has 1"
    )


def _residual(last: pd.DataFrame) -> str:
    found = _finite(last, "bn_residual")
    if found.empty:
        return ""
    return f"batch norm's output is the mean block to within {number(found['value'].max())}"


def _diagonal(last: pd.DataFrame) -> str:
    found = _finite(last, "fim_rel_err_mean")
    if found.empty:
        return ""
    return f"the diagonal Fisher information of the mixtures is off by {number(100 * found['value'].mean())} %"


def _finite(last: pd.DataFrame, name: str) -> pd.DataFrame:
    return pd.DataFrame(last[(last["name"] == name) & np.isfinite(last["value"])])
