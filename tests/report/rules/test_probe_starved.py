from __future__ import annotations

from normlens.report.rules.probe_starved import probe_starved
from normlens.run.reading import Measurement


def test_a_probe_that_never_ran_is_worth_a_look_and_one_that_did_sometimes_a_note(write_measurements):
    run = write_measurements([
        Measurement(0, "never", "starved", "would have cost 9 s"),
        Measurement(0, "sometimes"), Measurement(1, "sometimes", "starved"),
    ])  # fmt: skip
    never, sometimes = probe_starved(run)
    assert (never.severity, sometimes.severity) == ("look", "note")
    assert never.message == "The probe never never ran; the time budget did not allow it: would have cost 9 s."
    assert sometimes.step == 1
