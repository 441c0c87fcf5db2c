"""gradients_at_init: gradients that vanish or explode from layer to layer before the first step."""

from __future__ import annotations

import math

import numpy as np

from normlens.plot.style import number
from normlens.report.finding import Finding
from normlens.report.readings import rows
from normlens.run.store import Run

__all__ = ["gradients_at_init"]

EXPLODES = (3.0, 10.0)
"""Factor of the gradient's energy from one layer to the one before it, and from the last to the first. Random weights
of the right size make 1, batch norm and ReLU pi/(pi - 1) = 1.47 (Yang et al., 2019); healthy runs of MLP and CNN have
up to 1.6 and 2.5, those with weights four times too large 4.9 and 24 or more: these are about the geometric means."""

VANISHES = (1 / 10, 1 / 100)
"""The same below 1: pooling alone makes 0.27 and 0.07, weights a tenth of the right size 0.012 and 1e-4 or less."""


def gradients_at_init(run: Run) -> list[Finding]:
    """Return a finding if the energy of the gradient changes much too fast with depth at the first measurement.

    Args:
        run: an opened run; its first measurement must be before training.
    """
    energy = rows(run, "gradient_flow", "energy")
    energy = energy[(energy["step"] == 0) & (energy["layer"] != "")]
    value = energy["value"].to_numpy(float)
    if len(value) < 2 or not np.isfinite(value).all() or not (value > 0).any():
        return []
    total = value[0] / value[-1] if value[-1] else math.inf
    factor = total ** (1 / (len(value) - 1))
    explodes = factor >= EXPLODES[0] and total >= EXPLODES[1]
    if not explodes and not (factor <= VANISHES[0] and total <= VANISHES[1]):
        return []
    word, cause = ("explodes", "too large") if explodes else ("vanishes", "too small, or units too flat,")
    return [
        Finding(
            severity="sick",
            probe="gradient_flow",
            layer=str(energy["layer"].iloc[0]),
            step=0,
            message=f"Before training the gradient {word} on its way to the input: its energy is {number(factor)} "
            f"times as large in each layer as in the next, {number(total)} times in all; weights are {cause} for this "
            "depth.",
            evidence={
                "energy_per_layer": factor,
                "threshold": (EXPLODES if explodes else VANISHES)[0],
                "energy_in_all": total,
                "layers": len(value),
            },
            advice=f"Multiply the weights by {number(_inverse(factor) ** 0.5)}: draw them by He's or Glorot's rule, or "
            "normalize (He et al., ICCV 2015; Yang et al., ICLR 2019, arXiv:1902.08129).",
        )
    ]


def _inverse(value: float) -> float:
    return 1 / value if value else math.inf
