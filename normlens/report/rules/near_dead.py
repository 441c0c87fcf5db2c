"""near_dead: channels that are off for 99 % of the probe batch or more, but not for all of it."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.report.readings import latest, rows, since
from normlens.run.store import Run

__all__ = ["near_dead"]

LOOK_FRACTION = 0.1
"""Of a layer's channels, the dead ones left out. As for dead channels: a tenth of the width hardly works."""


def near_dead(run: Run) -> list[Finding]:
    """Return a finding for each layer of whose channels a tenth or more are nearly dead at the last measurement.

    Args:
        run: an opened run.
    """
    counts = rows(run, "elimination", "dead", "near_dead", "channels")
    if counts.empty:
        return []
    table = counts.pivot_table(index=["layer", "step"], columns="name", values="value", sort=False)
    table = table.reindex(columns=["dead", "near_dead", "channels"])
    fraction = ((table["near_dead"] - table["dead"].fillna(0)) / table["channels"]).rename("fraction").reset_index()
    found = []
    for layer in latest(fraction).query("fraction >= @LOOK_FRACTION")["layer"]:
        history = fraction[fraction["layer"] == layer].sort_values("step")
        first = since(history["step"], history["fraction"] >= LOOK_FRACTION)
        found.append(_finding(str(layer), first, float(history["fraction"].iloc[-1])))
    return found


def _finding(layer: str, step: int, fraction: float) -> Finding:
    return Finding(
        severity="look",
        probe="elimination",
        layer=layer,
        step=step,
        message=f"{100 * fraction:.0f} % of the channels are off for 99 % of the inputs or more: they hardly learn.",
        evidence={"fraction_nearly_dead": fraction, "threshold": LOOK_FRACTION},
        advice="Watch whether they die; a norm over the batch before this nonlinearity keeps channels away from zero.",
    )
