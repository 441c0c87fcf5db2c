"""dead_channels: channels that were off for every sample of the probe batch."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.report.readings import latest, rows, since
from normlens.run.store import Run

__all__ = ["dead_channels"]

SICK_FRACTION = 0.25
"""Of a layer's channels. A layer that has lost a quarter of its width is another architecture than the one chosen. Less
is a note: healthy MLPs without a norm are born with up to 15 % dead channels in a layer (random weights on inputs that
are positive), lose some more, and learn all the same."""


def dead_channels(run: Run) -> list[Finding]:
    """Return a finding for each layer with dead channels at the last measurement.

    A channel is dead when ``P(z <= 0)`` over the probe batch is exactly 1. With n values seen, it may still be active
    for up to 3/n of all inputs (95 % bound, the rule of three), which the evidence states.

    Args:
        run: an opened run.
    """
    counts = rows(run, "elimination", "dead", "channels")
    found = []
    for layer in dict.fromkeys(counts["layer"]):
        of_layer = counts[counts["layer"] == layer]
        dead = of_layer[of_layer["name"] == "dead"]
        if len(dead) and dead["value"].iloc[-1] > 0:
            channels = latest(of_layer[of_layer["name"] == "channels"])["value"]
            worst = dead["value"].iloc[-1] / channels.max() >= SICK_FRACTION
            first = since(dead["step"], dead["value"] >= (SICK_FRACTION * channels.max() if worst else 1))
            found.append(_finding(str(layer), first, dead.iloc[-1]["value"], channels.max(), int(dead["n"].iloc[-1])))
    return found


def _finding(layer: str, step: int, dead: float, channels: float, n: int) -> Finding:
    fraction = dead / channels  # NaN where the number of channels is unknown, which is a note
    seen = f"for each of the {n} values that the probe saw of it" if n else "for every sample of the probe batch"
    sick = fraction >= SICK_FRACTION
    crossed = SICK_FRACTION if sick else 0.0
    evidence = {"fraction_dead": fraction, "threshold": crossed, "dead": dead, "channels": channels}
    return Finding(
        severity="sick" if sick else "note",
        probe="elimination",
        layer=layer,
        step=step,
        message=f"{dead:.0f} of {channels:.0f} channels are dead: each was off {seen}, so no gradient reaches them.",
        evidence=evidence | ({"active_at_most": 3 / n} if n else {}),
        advice="Normalize over the batch before this nonlinearity, lower the learning rate, or use a leaky one.",
    )
