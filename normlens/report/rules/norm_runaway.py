"""norm_runaway: scale-invariant weights that grow without end, since nothing holds their length."""

from __future__ import annotations

import pandas as pd

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows
from normlens.run.store import Run

__all__ = ["norm_runaway"]

GROWTH = 2.0
"""Of the norm: the effective learning rate, which is that of the direction, has then fallen to a quarter, as by a
schedule that nobody set. Healthy runs of MLP and CNN stayed below 1.5 in their scale-invariant layers."""

INVARIANT = 1e-3
"""The cosine of weight and gradient up to which the loss does not depend on the weight's length."""


def norm_runaway(run: Run) -> list[Finding]:
    """Return a finding for each scale-invariant weight that has doubled its length with no decay to stop it.

    The gradient of such a weight is orthogonal to it, so every step of gradient descent makes it longer:
    ``|w|^2 + eta^2 |g|^2``. Weight decay would hold it at an equilibrium, of which the records then have the angle.

    Args:
        run: an opened run.
    """
    found = []
    for layer, readings in by_layer(rows(run, "weight_dynamics")):
        norm, invariance = history(readings, "norm"), history(readings, "invariance")["value"]
        decays = len(history(readings, "angle_equilibrium")) > 0
        if len(norm) > 1 and not decays and float(invariance.median()) < INVARIANT:
            growth = norm["value"] / norm["value"].iloc[0]
            if growth.iloc[-1] >= GROWTH:
                found.append(_finding(layer, norm, growth, readings))
    return found


def _finding(layer: str, norm: pd.DataFrame, growth: pd.Series[float], readings: pd.DataFrame) -> Finding:
    rate = history(readings, "effective_rate")["value"]
    last = float(growth.iloc[-1])
    return Finding(
        severity="look",
        probe="weight_dynamics",
        layer=layer,
        step=int(norm.loc[growth >= GROWTH, "step"].iloc[0]),
        message=f"The norm of this scale-invariant weight has grown {number(last)} times with no decay to hold it: "
        f"its effective learning rate fell from {number(rate.iloc[0])} to {number(rate.iloc[-1])}.",
        evidence={"growth": last, "threshold": GROWTH, "norm": float(norm["value"].iloc[-1])},
        advice="Use weight decay, weight rescaling or a lower learning rate, so that the effective rate is yours to "
        "set (van Laarhoven, arXiv:1706.05350; Wan et al., arXiv:2006.08419).",
    )
