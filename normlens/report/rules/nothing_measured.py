"""nothing_measured: no probe has read anything, so that nobody can call the run healthy."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.run.store import Run

__all__ = ["nothing_measured"]


def nothing_measured(run: Run) -> list[Finding]:
    """Return a finding if no probe has a reading; what the user or the lens itself wrote does not count.

    Args:
        run: an opened run.
    """
    measured = [probe for probe in run.probes if probe not in ("user", "lens")]
    if measured:
        return []
    return [
        Finding(
            severity="look",
            probe="",
            layer="",
            step=None,
            message="No probe has measured anything, so that nothing can be said about this run.",
            evidence={"probes_with_readings": 0, "threshold": 1},
            advice="Pass probes to the lens and call lens.step after each optimizer step.",
        )
    ]
