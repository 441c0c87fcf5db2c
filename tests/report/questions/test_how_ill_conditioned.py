from __future__ import annotations

from normlens.report.questions.how_ill_conditioned import how_ill_conditioned
from normlens.run.reading import Measurement, Reading


def test_the_answer_gives_both_ends_what_is_a_bound_and_the_largest_curvature(healthy_run, sick_run):
    answers = how_ill_conditioned({"well": healthy_run, "ill": sick_run}).answers
    assert answers["well"] == (
        "The condition number went from 200 to at least 500 at a tolerance of 1e-06, 12 flat directions not counted, "
        "3 of negative curvature; the largest curvature was 20 ± 0.02 at step 300."
    )
    assert answers["ill"].startswith("The condition number was 520 at step 120 and is not a number since; ")
    assert answers["ill"].endswith("10.4 ± 0.0104 at step 120.")


def test_without_the_spectrum_the_condition_number_stands_alone(write_measurements):
    run = write_measurements([Measurement(0, "condition_number", readings=(Reading("kappa", 7.0),))])
    question = how_ill_conditioned({"run": run})
    assert question.answers["run"] == "The condition number went from 7 to 7."
    assert len(question.figures) == 1


def test_a_number_that_its_tolerance_has_made_is_said_to_be_one(write_measurements):
    readings = (Reading("kappa", 9.5e5), Reading("tolerance", 1e-6))
    run = write_measurements([Measurement(0, "condition_number", readings=readings)])
    answer = how_ill_conditioned({"run": run}).answers["run"]
    assert "which is all that a tolerance of 1e-06 can show: smaller eigenvalues go on below it" in answer
