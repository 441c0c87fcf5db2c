"""unfinished: the lens was not closed: the run was killed, or is still going on."""

from __future__ import annotations

from normlens.report.cost import overhead
from normlens.report.finding import Finding
from normlens.run.store import Run

__all__ = ["unfinished"]


def unfinished(run: Run) -> list[Finding]:
    """Return a note if the last session has no closing record of the lens.

    Args:
        run: an opened run.
    """
    measurements = run.measurements
    if not measurements or overhead(run).closed:
        return []
    last = max(m.step for m in measurements)
    return [
        Finding(
            severity="note",
            probe="",
            layer="",
            step=last,
            message=f"The run has no closing record: it was killed, or is still being written, after step {last}.",
            advice="Nothing that was recorded is lost; continue it with resume=True if it was killed.",
        )
    ]
