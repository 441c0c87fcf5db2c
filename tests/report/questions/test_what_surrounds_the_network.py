from __future__ import annotations

import numpy as np

from normlens import plot
from normlens.report.questions.what_surrounds_the_network import what_surrounds_the_network
from normlens.run.reading import Measurement, Reading


def answer(write_measurements, loss, *codes):
    x = np.linspace(-1, 1, len(loss))
    readings = (Reading("loss", np.array(loss), dims=("x",)), Reading("x", x, dims=("x",)), *codes)
    question = what_surrounds_the_network(
        {"run": write_measurements([Measurement(4, "loss_surface", readings=readings)])}
    )
    return question.answers["run"]


def test_the_answer_gives_the_rise_its_unit_and_where_it_is_lower(healthy_run, write_measurements):
    assert what_surrounds_the_network({"run": healthy_run}).answers["run"] == (
        "At step 300 the loss rises from 0.23 to at most 11.2 within 1 times the length of the filters; it is nowhere "
        "lower than at the network itself."
    )
    assert answer(write_measurements, [3.0, 2.0, 1.0, 0.5, 4.0], Reading("directions", 2.0)) == (
        "At step 4 the loss rises from 1 to at most 4 within 1 times the length of the last update; it is lower, 0.5, "
        "at a distance of 0.5."
    )


def test_what_is_not_finite_is_said(write_measurements):
    assert "is not finite at 1 of 3 points" in answer(write_measurements, [np.inf, 1.0, 2.0])
    assert answer(write_measurements, [1.0, np.nan, 2.0]) == (
        "The loss is not a number at the network itself, at step 4."
    )


def test_a_line_has_no_figure_of_three_dimensions(healthy_run, write_measurements):
    assert what_surrounds_the_network({"run": healthy_run}).figures == (plot.loss_surface, plot.loss_surface_3d)
    readings = (Reading("loss", np.ones(3), dims=("x",)),)
    line = write_measurements([Measurement(0, "loss_surface", readings=readings)])
    assert what_surrounds_the_network({"run": line}).figures == (plot.loss_surface,)
