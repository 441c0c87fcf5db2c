"""damaged: the file has lost records, and what is left was recovered."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.report.readings import rows
from normlens.run.store import Run

__all__ = ["damaged"]


def damaged(run: Run) -> list[Finding]:
    """Return a finding if the run was opened with ``recover=True`` and something had to be left out.

    Args:
        run: an opened run; one that is damaged and was opened without ``recover`` raises before it comes here.
    """
    for probe in run.probes:  # damage is noticed where it is read
        rows(run, probe)
    if not run.damage:
        return []
    return [
        Finding(
            severity="look",
            probe="",
            layer="",
            step=None,
            message=f"The file is damaged; what is whole was read. {'; '.join(run.damage)[:500]}.",
            evidence={"faults": len(run.damage), "threshold": 0},
            advice="Take the file from a backup, or trust only what is shown; check the disk.",
        )
    ]
