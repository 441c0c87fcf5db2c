"""margin_shrinking: channels on their way to the elimination singularity, where a unit falls out of the network."""

from __future__ import annotations

import math

import pandas as pd

from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows
from normlens.run.store import Run

__all__ = ["margin_shrinking"]

ALIVE = -2.0
"""Margin (mean over standard deviation of the least active channel) up to which a layer counts as whole at the start: a
Gaussian channel there is active for 2 % of its inputs. Below it the channel was lost before the training."""

SHRUNK = 1.0
"""Standard deviations: a channel active for half of its inputs is then active for 16 %. Thirty healthy runs of MLP and
CNN lost at most 0.4 where they had it to lose."""

GONE = -3.0
"""Where a Gaussian channel is active for one input in 740, and dead on most probe batches."""


def margin_shrinking(run: Run) -> list[Finding]:
    """Return a finding for each layer whose smallest offset has fallen far, and was still falling at the end.

    Args:
        run: an opened run.
    """
    found = []
    for layer, of_layer in by_layer(rows(run, "elimination", "margin")):
        margin = history(of_layer, "margin")
        values = margin["value"].to_numpy(float)
        if len(values) > 2 and math.isfinite(values[0]) and math.isfinite(values[-1]):
            lost = values[0] - values[-1]
            if values[0] >= ALIVE and lost >= SHRUNK and values[-1] <= min(values[-2], -SHRUNK):
                found.append(_finding(layer, margin, float(lost)))
    return found


def _finding(layer: str, margin: pd.DataFrame, lost: float) -> Finding:
    first, last = margin.iloc[0], margin.iloc[-1]
    half = margin[margin["value"] <= first["value"] - SHRUNK / 2]
    pace = lost / float(last["step"] - first["step"])
    left = max(float(last["value"]) - GONE, 0.0) / pace
    ahead = f"at this pace it is dead in {left:.0f} steps" if left else "it is all but dead"
    return Finding(
        severity="look",
        probe="elimination",
        layer=layer,
        step=int(half["step"].iloc[0]),
        message=f"The margin to the elimination singularity went from {first['value']:.2f} to {last['value']:.2f} "
        f"standard deviations: the least active channel moves out of its nonlinearity's reach; {ahead}.",
        evidence={"lost": lost, "error": float(last["error"]), "threshold": SHRUNK, "margin": float(last["value"])},
        advice="Look at what pulls the shifts down (a sparsity penalty, weight decay on gains, a large rate); batch "
        "norm with channel norm keeps the margin (Qiao et al., arXiv:1911.09738).",
    )
