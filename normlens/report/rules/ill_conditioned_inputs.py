"""ill_conditioned_inputs: inputs of a layer that are far from centered, which slows gradient descent down."""

from __future__ import annotations

import math

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import by_layer, history, rows
from normlens.run.store import Run

__all__ = ["ill_conditioned_inputs"]

GAIN = 10.0
"""Factor of the condition number that centering alone would take away; of the Hessian's it may be the square. Healthy
runs of MLP and CNN begin and end with 1 to 6, once with 9.5."""


def ill_conditioned_inputs(run: Run) -> list[Finding]:
    """Return a note for each layer whose inputs are ill-conditioned because they are not centered.

    At the first or at the last measurement: units that die of such inputs take their columns with them.

    Args:
        run: an opened run.
    """
    found = []
    for layer, readings in by_layer(rows(run, "activation_condition")):
        kappa = {name: history(readings, f"kappa_{name}") for name in ("raw", "centered", "normalized")}
        if len(kappa["raw"]) and len(kappa["raw"]) == len(kappa["centered"]) == len(kappa["normalized"]):
            gain = (kappa["raw"]["value"] / kappa["centered"]["value"]).iloc[[0, -1]]
            if (gain >= GAIN).any():
                at = 0 if gain.iloc[0] >= gain.iloc[-1] else -1
                worst = {name: float(values["value"].iloc[at]) for name, values in kappa.items()}
                found.append(_finding(layer, int(kappa["raw"]["step"].iloc[at]), worst))
    return found


def _finding(layer: str, step: int, kappa: dict[str, float]) -> Finding:
    return Finding(
        severity="note",
        probe="activation_condition",
        layer=layer,
        step=step,
        message=f"The layer's inputs have a condition number of {number(kappa['raw'])}, mostly since they are not "
        f"centered: {number(kappa['centered'])} without their means, {number(kappa['normalized'])} normalized.",
        evidence={
            "gain_of_centering": kappa["raw"] / kappa["centered"],
            "error": math.nan,
            "threshold": GAIN,
            "kappa": kappa["raw"],
        },
        advice="Center the data, or put a normalization before this layer; batch normalization preconditioning "
        "(normlens.optim.bnp) does it in the gradient alone (Lange et al., JMLR 2022, arXiv:2108.01110).",
    )
