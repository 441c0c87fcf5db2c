"""drift: distributions of layers' inputs that set off again, far above their floor, after they had calmed down."""

from __future__ import annotations

import pandas as pd

from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows
from normlens.run.store import Run

__all__ = ["drift"]

LARGE = 0.3
"""Kolmogorov-Smirnov distance between two measurements in a row, mean over the channels: three tenths of all values
have moved past some point."""

FLOORS = 3.0
"""Times the 99 % point of what a fresh batch would show if nothing had moved."""


def drift(run: Run) -> list[Finding]:
    """Return a finding for the layer that drifts most in the second half of the run, if it is more than in the first.

    That activations move at the beginning is learning: in healthy runs of MLP and CNN by up to tens of standard
    deviations. The drift from one measurement to the next then falls; where it does not, the layers behind have to
    learn anew.

    Args:
        run: an opened run.
    """
    found = []
    for layer, readings in by_layer(rows(run, "activation_drift")):
        ks, floor = history(readings, "ks_previous"), history(readings, "ks_floor")
        if len(ks) > 3 and len(floor):
            late = ks["step"] > ks["step"].max() / 2
            peak, before = ks[late]["value"].max(), ks[~late]["value"].max()
            if peak >= max(LARGE, FLOORS * float(floor["value"].iloc[-1])) and peak > before:
                found.append((float(peak), layer, ks, float(floor["value"].iloc[-1])))
    return [_finding(*worst, len(found)) for worst in sorted(found, key=lambda one: -one[0])[:1]]


def _finding(peak: float, layer: str, ks: pd.DataFrame, floor: float, layers: int) -> Finding:
    at = ks[ks["value"] == peak].iloc[0]
    return Finding(
        severity="look",
        probe="activation_drift",
        layer=layer,
        step=int(at["step"]),
        message=f"The layer's inputs moved by {peak:.2f} (Kolmogorov-Smirnov) between two measurements, "
        f"{peak / floor:.0f} times their floor and more than at the start of the run; so in {layers} "
        f"layer{'' if layers == 1 else 's'}.",
        evidence={"drift": peak, "error": float(at["error"]), "threshold": max(LARGE, FLOORS * floor), "floor": floor},
        advice="Look at what changed then: the data, a schedule, an unfrozen layer; a normalization before this "
        "layer, or a lower rate, keeps its inputs in place (Ioffe and Szegedy 2015, arXiv:1502.03167).",
    )
