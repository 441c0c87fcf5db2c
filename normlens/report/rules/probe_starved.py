"""probe_starved: a probe did not run, because the time budget did not allow it."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.run.reading import Measurement
from normlens.run.store import Run

__all__ = ["probe_starved"]


def probe_starved(run: Run) -> list[Finding]:
    """Return a finding for each starved probe: a look if it never ran, else a note.

    Args:
        run: an opened run.
    """
    starved: dict[str, list[Measurement]] = {}
    for measurement in run.measurements:
        if measurement.status == "starved":
            starved.setdefault(measurement.probe, []).append(measurement)
    return [_finding(run, probe, times) for probe, times in starved.items()]


def _finding(run: Run, probe: str, times: list[Measurement]) -> Finding:
    ran = sum(m.probe == probe and m.status == "ok" for m in run.measurements)
    how = f"ran {ran} times, but not always" if ran else "never ran"
    why = f": {times[-1].message[:500]}" if times[-1].message else ""
    return Finding(
        severity="note" if ran else "look",
        probe=probe,
        layer="",
        step=times[0].step,
        message=f"The probe {probe} {how}; the time budget did not allow it{why}.",
        evidence={"measurements": ran, "threshold": 1, "starved": len(times)},
        advice="Raise the budget, measure less often, or give the probe less to do.",
    )
