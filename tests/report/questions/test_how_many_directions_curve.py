from __future__ import annotations

import numpy as np

from normlens.report.questions.how_many_directions_curve import how_many_directions_curve
from normlens.run.reading import Measurement, Reading


def test_the_answer_gives_the_share_within_the_resolution_and_both_ends(healthy_run):
    assert how_many_directions_curve({"run": healthy_run}).answers["run"] == (
        "At step 300, 64 ± 1 % of all directions are flat: within ±0.4 of zero, which the estimate does not tell from "
        "it; eigenvalues from −1 to 20."
    )


def test_a_share_that_the_quadrature_cannot_know_is_not_made_up(write_measurements):
    readings = (
        Reading("density", np.ones(3), dims=("grid",)),
        Reading("ritz", np.array([[-0.5, 0.5]]), dims=("probe", "node")),
    )
    run = write_measurements([Measurement(2, "hessian_spectrum", readings=readings)])
    assert how_many_directions_curve({"run": run}).answers["run"] == (
        "At step 2 the Hessian has eigenvalues from −0.5 to 0.5; how many of them are zero the estimate cannot say."
    )


def test_a_spectrum_without_a_density_says_what_to_set(write_measurements):
    run = write_measurements([Measurement(0, "hessian_spectrum", readings=(Reading("lambda_max", 3.0),))])
    question = how_many_directions_curve({"run": run})
    assert not question.answers
    assert question.absence.endswith("The density costs extra: set its density_probes.")
