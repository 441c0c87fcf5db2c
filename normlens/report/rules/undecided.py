"""undecided: a probe ran and could not decide what it was asked."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.report.readings import rows
from normlens.run.store import Run

__all__ = ["undecided"]

ASKED = {
    "condition_number": ("kappa", "the smallest eigenvalue was not reached, so there is a lower bound alone", "steps"),
    "edge_of_stability": ("ratio", "the optimizer had not made a step yet, so there was an edge alone", "schedule"),
}
"""By probe: the reading that is the answer, what it means that there is none, and the setting that may help."""


def undecided(run: Run) -> list[Finding]:
    """Return a note for each probe that has readings but never the one that it is there for.

    Args:
        run: an opened run.
    """
    found = []
    for probe, (answer, why, setting) in ASKED.items():
        readings = rows(run, probe)
        if len(readings) and answer not in set(readings["name"]):
            found.append(_finding(probe, int(readings["step"].nunique()), int(readings["step"].min()), why, setting))
    return found


def _finding(probe: str, measurements: int, step: int, why: str, setting: str) -> Finding:
    return Finding(
        severity="note",
        probe=probe,
        layer="",
        step=step,
        message=f"The probe {probe} could not decide in any of {measurements} measurements: {why}.",
        evidence={"decided": 0, "threshold": 1, "measurements": measurements},
        advice=f"Raise its {setting}, give it fewer parameters or samples, or measure less often and longer.",
    )
