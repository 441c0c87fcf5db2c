from __future__ import annotations

from normlens.report.question import method, sentence, unanswered
from normlens.run.reading import Measurement, Reading


def test_a_sentence_starts_with_a_capital_and_ends_with_a_stop():
    assert sentence("no, it did not") == "No, it did not."


def test_the_method_note_counts_what_was_measured(write_measurements):
    run = write_measurements([
        Measurement(0, "p", mode="eval", seconds=1.0, readings=(Reading("x", 1.0, n=8), Reading("y", 1.0, n=9))),
        Measurement(1, "p", mode="train", seconds=2.0, readings=(Reading("x", 1.0, n=16),)),
        Measurement(2, "p", "failed", seconds=5.0),
        Measurement(3, "p", mode="eval", seconds=0.1),  # not due by its own schedule
    ])  # fmt: skip
    note = method({"run": run}, "p", "x", estimator="mean")
    assert note == {
        "estimator": "mean", "mode": "eval, train", "sample size": "n = 8 to 16",
        "cost": "3 s in 2 measurements, 1.5 s each, all runs together",
    }  # fmt: skip


def test_what_was_never_tried_has_no_reason(healthy_run):
    assert unanswered({"run": healthy_run}, "hessian_spectrum") == (
        "Not measured: no run holds what the probe hessian_spectrum reads for this. Pass it to the lens in probes=."
    )
