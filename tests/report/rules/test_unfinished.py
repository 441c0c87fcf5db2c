from __future__ import annotations

import pytest

from normlens.report.rules.unfinished import unfinished
from normlens.run.reading import Measurement, Reading


@pytest.mark.parametrize("status", ["ok", "note"])
def test_a_closing_record_of_whatever_status_ends_a_run(write_measurements, status):
    numbers = (Reading("bare_seconds", 1.0), Reading("lens_seconds", 0.1))
    closing = Measurement(7, "lens", status, readings=numbers)
    assert unfinished(write_measurements([Measurement(7, "user"), closing])) == []


def test_a_step_at_which_the_lens_failed_is_no_closing_record(write_measurements):
    assert len(unfinished(write_measurements([Measurement(7, "lens", "failed", "ValueError: x")]))) == 1


def test_without_one_the_last_step_is_noted(write_measurements):
    (finding,) = unfinished(write_measurements([Measurement(7, "user"), Measurement(3, "user")]))
    assert (finding.severity, finding.step) == ("note", 7)
