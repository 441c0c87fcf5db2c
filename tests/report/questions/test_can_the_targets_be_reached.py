from __future__ import annotations

import math

from normlens.report.questions.can_the_targets_be_reached import can_the_targets_be_reached
from normlens.run.reading import Measurement, Reading


def answer(write_measurements, **values):
    readings = tuple(Reading(name, value, n=8) for name, value in values.items())
    early = (Reading("residual", 0.9, n=8), Reading("rank", 1.0))
    records = [Measurement(step, "representation_alignment", readings=r) for step, r in ((0, early), (6, readings))]
    return can_the_targets_be_reached({"run": write_measurements(records)}).answers["run"]


def test_the_answer_gives_the_last_residual_and_rank_of_both_jacobians(write_measurements):
    both = {"rows": 80.0, "rows_last": 90.0, "rank": 80.0, "rank_last": 25.0}
    assert answer(write_measurements, residual=1e-20, residual_last=0.303, **both) == (
        "Yes, at step 6 all parameters can reach all of them (n = 8, rank 80 of 80); the last layer alone can reach "
        "all but 30.3 % of their length (n = 8, rank 25 of 90)."
    )


def test_the_answer_is_in_part_or_no_where_something_or_everything_is_out_of_reach(write_measurements):
    assert answer(write_measurements, residual=0.25) == (
        "In part, at step 6 all parameters can reach all but 25 % of their length (n = 8)."
    )
    assert answer(write_measurements, residual=1.0).startswith("No, at step 6 all parameters can reach none of them")


def test_a_residual_that_is_not_a_number_leaves_the_other_one(write_measurements):
    assert answer(write_measurements, residual=math.nan) == "The residual is not a number at step 6."
    words = answer(write_measurements, residual=math.nan, residual_last=0.5)
    assert words == (
        "At step 6 the last layer alone can reach all but 50 % of their length (n = 8); of all parameters the residual "
        "is not a number."
    )


def test_the_last_layer_may_be_all_that_was_measured(write_measurements):
    readings = (Reading("residual_last", 0.5, n=8),)
    run = write_measurements([Measurement(2, "representation_alignment", readings=readings)])
    assert can_the_targets_be_reached({"run": run}).answers["run"] == (
        "At step 2 the last layer alone can reach all but 50 % of their length (n = 8); of all parameters it was not "
        "measured."
    )


def test_without_the_probe_it_is_not_measured(empty_run):
    question = can_the_targets_be_reached({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe representation_alignment reads")
    assert not question.answers
