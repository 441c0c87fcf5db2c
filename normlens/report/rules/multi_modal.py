"""multi_modal: pre-activations with several modes, which one mean and one variance cannot normalize."""

from __future__ import annotations

import math

import pandas as pd

from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows, since
from normlens.run.store import Run

__all__ = ["multi_modal"]

SHARE = 0.5
"""Of a layer's channels whose density has more than one mode, a valley of half their height between them. Healthy runs
of MLP and CNN have up to 0.4, in their last layers, where classes part."""


def multi_modal(run: Run) -> list[Finding]:
    """Return a note for each layer of which half the channels are multi-modal at the last measurement.

    Args:
        run: an opened run.
    """
    found = []
    for layer, readings in by_layer(rows(run, "fisher_vector")):
        share = history(readings, "multimodal")
        if len(share) and float(share["value"].iloc[-1]) >= SHARE:
            found.append(_finding(layer, share, history(readings, "separation_median")["value"]))
    return found


def _finding(layer: str, share: pd.DataFrame, separation: pd.Series[float]) -> Finding:
    last = float(share["value"].iloc[-1])
    apart = float(separation.iloc[-1]) if len(separation) else math.nan
    return Finding(
        severity="note",
        probe="fisher_vector",
        layer=layer,
        step=since(share["step"], share["value"] >= SHARE),
        message=f"{100 * last:.0f} % of the channels have several modes, {apart:.2g} standard deviations apart: a "
        "normalization with one mean and one variance moves the modes together, and each of them is off center.",
        evidence={"multimodal": last, "error": math.nan, "threshold": SHARE, "separation": apart},
        advice="Look whether the data come from several sources; mixture normalization gives each mode its own mean "
        "and variance (Kalayeh and Shah, arXiv:1806.02892).",
    )
