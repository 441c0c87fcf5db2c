from __future__ import annotations

from normlens.report.rules.probe_failed import probe_failed
from normlens.run.reading import Measurement


def test_failures_are_grouped_by_probe_and_message_and_counted_among_those_tried(write_measurements):
    run = write_measurements([
        Measurement(0, "a", "failed", "ValueError: x"), Measurement(1, "a", "failed", "ValueError: x"),
        Measurement(2, "a"), Measurement(3, "a", "starved"), Measurement(4, "a", "failed", "TypeError: y"),
    ])  # fmt: skip
    first, second = probe_failed(run)
    assert first.message == "The probe a failed in 2 of 4 measurements: ValueError: x."
    assert (first.step, first.severity) == (0, "note")  # never worked before
    assert (second.step, second.severity, second.evidence["failed"]) == (4, "look", 1)
