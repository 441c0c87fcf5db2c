from __future__ import annotations

from normlens.report.rules.nothing_measured import nothing_measured
from normlens.run.reading import Measurement, Reading


def test_what_the_user_logged_is_no_measurement_and_any_probe_is_one(write_measurements):
    log = Measurement(0, "user", readings=(Reading("epoch", 1.0),))
    assert [finding.severity for finding in nothing_measured(write_measurements([log]))] == ["look"]
    probed = Measurement(0, "hessian_spectrum", readings=(Reading("lambda_max", 1.0),))
    assert nothing_measured(write_measurements([log, probed])) == []
