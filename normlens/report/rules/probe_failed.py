"""probe_failed: a probe raised an error, so that something was not measured."""

from __future__ import annotations

from normlens.report.finding import Finding
from normlens.run.reading import Measurement
from normlens.run.store import Run

__all__ = ["probe_failed"]


def probe_failed(run: Run) -> list[Finding]:
    """Return a finding for each probe and message of failed measurements; the training itself goes on undisturbed.

    A probe that worked before is worth a look: something has changed. One that never did does not fit the model, which
    is a note.

    Args:
        run: an opened run.
    """
    failures: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in run.measurements:
        if measurement.status == "failed":
            failures.setdefault((measurement.probe, measurement.message), []).append(measurement)
    return [_finding(run, probe, message, failed) for (probe, message), failed in failures.items()]


def _finding(run: Run, probe: str, message: str, failed: list[Measurement]) -> Finding:
    tried = sum(m.probe == probe and m.status in ("ok", "failed") for m in run.measurements)
    worked = any(m.probe == probe and m.status == "ok" and m.step < failed[0].step for m in run.measurements)
    return Finding(
        severity="look" if worked else "note",
        probe=probe,
        layer="",
        step=failed[0].step,
        message=f"The probe {probe} failed in {len(failed)} of {tried} measurements: {message[:500]}.",
        evidence={"failed": len(failed), "threshold": 0, "measurements": tried},
        advice="Check the probe's layers and data against the model; what it would show is missing for these steps.",
    )
