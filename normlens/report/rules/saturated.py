"""saturated: units that sit where their nonlinearity is flat, so that hardly a gradient passes."""

from __future__ import annotations

import pandas as pd

from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows, since
from normlens.run.store import Run

__all__ = ["saturated"]

HALF = 0.5
"""Share of a layer's values where the slope is below a twentieth of the steepest. Healthy tanh networks have 0 to 0.2;
where it is half, the gradient loses half of its paths in this layer alone."""


def saturated(run: Run) -> list[Finding]:
    """Return a finding for each bounded nonlinearity of which half the values are saturated at the last measurement.

    Args:
        run: an opened run.
    """
    found = []
    for layer, readings in by_layer(rows(run, "saturation")):
        share = history(readings, "saturated")
        if len(share) and float(share["value"].iloc[-1]) >= HALF:
            found.append(_finding(layer, share, readings))
    return found


def _finding(layer: str, share: pd.DataFrame, readings: pd.DataFrame) -> Finding:
    last, first = share.iloc[-1], since(share["step"], share["value"] >= HALF)
    units, slope = (float(history(readings, name)["value"].iloc[-1]) for name in ("saturated_units", "slope"))
    began = "from the start: weights or inputs are too large" if first == share["step"].iloc[0] else "since then"
    return Finding(
        severity="sick",
        probe="saturation",
        layer=layer,
        step=first,
        message=f"{100 * last['value']:.0f} % of the values are where the nonlinearity is flat, {began}; "
        f"{100 * slope:.2g} % of the gradient's energy pass.",
        evidence={
            "saturated": float(last["value"]),
            "error": float(last["error"]),
            "threshold": HALF,
            "saturated_units": units,
        },
        advice="Scale the inputs, draw weights of variance 1/n, or normalize before this nonlinearity (Glorot and "
        "Bengio, AISTATS 2010).",
    )
