"""above_the_edge: a learning rate above the edge of stability: steps overshoot along the steepest direction."""

from __future__ import annotations

import math

from normlens.report.finding import Finding
from normlens.report.readings import history, rows
from normlens.run.store import Run

__all__ = ["above_the_edge"]

EDGE = 1.0
"""Of the sharpness over the largest stable one, at the first step: on a quadratic each step is then larger than the one
before. Healthy runs of MLP and CNN began at up to 0.2."""

HOVERING = 1.5
"""The same later: full-batch training settles at the edge and swings about it by some tens of percent (Cohen et al.,
2021), and mini-batch training stays below; half as much again, three times in a row, is neither. Once is not enough:
while Adam's second moments are those of few gradients, in its first steps or where a dead unit wakes up, its
preconditioned sharpness reads up to hundreds of times the edge in healthy runs, and a hundredth of it soon after."""

SETTLED = 20
"""Steps that the third of them must be away from the start."""


def above_the_edge(run: Run) -> list[Finding]:
    """Return a finding if the sharpness exceeds what the learning rate can bear, at the start or later.

    Args:
        run: an opened run.
    """
    ratio = history(rows(run, "edge_of_stability", "ratio"), "ratio")
    certain = ratio["value"] - 2 * ratio["error"].fillna(0.0)
    start = (ratio["step"] == 0) & (certain > EDGE)
    high = certain > HOVERING
    later = (ratio["step"] >= SETTLED) & high.rolling(3).sum().eq(3)
    above = ratio[start | later]
    if above.empty:
        return []
    first = above.iloc[0]
    threshold = EDGE if first["step"] == 0 else HOVERING
    return [
        Finding(
            severity="look",
            probe="edge_of_stability",
            layer="",
            step=int(first["step"]),
            message=f"The learning rate is {first['value']:.2g} times what the sharpness allows: steps along the "
            f"steepest direction overshoot and grow; so in {len(above)} of {len(ratio)} measurements.",
            evidence={
                "sharpness_over_edge": float(first["value"]),
                "error": float(first["error"]),
                "threshold": threshold,
                "largest": float(above["value"].max()),
            },
            advice=f"Divide the learning rate by {math.ceil(float(first['value']))} or warm it up (Cohen et al., ICLR "
            "2021, arXiv:2103.00065; with a normalization the weights may grow until it fits).",
        )
    ]
