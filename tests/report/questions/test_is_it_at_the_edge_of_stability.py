from __future__ import annotations

import math

from normlens.report.questions.is_it_at_the_edge_of_stability import is_it_at_the_edge_of_stability
from normlens.run.reading import Measurement, Reading


def answer(write_measurements, *ratios):
    records = [Measurement(i, "edge_of_stability", readings=(Reading("ratio", r),)) for i, r in enumerate(ratios)]
    return is_it_at_the_edge_of_stability({"run": write_measurements(records)}).answers["run"]


def test_the_answer_is_yes_no_or_not_any_more(write_measurements, healthy_run):
    well = is_it_at_the_edge_of_stability({"well": healthy_run}).answers["well"]
    assert well == "No, the sharpness is 0.5 ± 0.01 of the stable limit at step 300."
    assert answer(write_measurements, 1.0, 0.5, 0.95, 1.1) == (
        "Yes, since step 2 the sharpness is there: 1.1 of the stable limit at step 3."
    )
    assert answer(write_measurements, 0.5, 1.0, 0.3) == (
        "Not any more, the sharpness was there at step 1 and is 0.3 of the stable limit at step 2."
    )


def test_what_is_not_a_number_is_said(write_measurements):
    assert answer(write_measurements, math.nan) == "The sharpness is not a number at any of 1 measurements."
    assert answer(write_measurements, 0.5, math.nan).endswith("step 0; at 1 of 2 steps it is not a number.")
