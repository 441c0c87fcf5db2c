from __future__ import annotations

import math

from normlens.report.questions.do_layers_chase_each_other import do_layers_chase_each_other
from normlens.run.reading import Measurement, Reading


def measured(step, **layers):
    """Each layer with its angle in degrees and its shift; the gradient's norm is 2."""
    readings = [Reading("layers", float(len(layers)))]
    for layer, (degrees, shift) in layers.items():
        values = {"cosine": math.cos(math.radians(degrees)), "shift": shift, "gradient_norm": 2.0}
        readings += [Reading(name, value, layer=layer, n=8) for name, value in values.items()]
    return Measurement(step, "covariate_shift", readings=tuple(readings))


def ask(write_measurements, *records):
    return do_layers_chase_each_other({"run": write_measurements(records)})


def test_the_answer_gives_the_median_angle_and_the_layer_that_turns_most(write_measurements):
    records = measured(5, a=(90, 9.0)), measured(10, a=(10, 0.1), b=(30, 0.5), c=(20, 0.2))
    assert ask(write_measurements, *records).answers["run"] == (
        "The step before 10 turned the gradient of a layer, by the layers below alone, by 20° (median of 3 layers), "
        "most in b by 30°, and moved it by 0.25 of its norm."
    )


def test_layers_that_are_no_number_are_counted(write_measurements):
    some = ask(write_measurements, measured(10, a=(10, 0.1), b=(math.nan, math.nan)))
    assert some.answers["run"].endswith("; 1 of 2 layers are not a number.")
    none = ask(write_measurements, measured(10, b=(math.nan, math.nan)))
    assert none.answers["run"] == "At step 10 it is not a number in any of 1 layers."


def test_a_run_in_which_no_layer_could_be_measured_says_why(write_measurements):
    alone = ask(write_measurements, measured(0), measured(10))
    assert alone.answers["run"].startswith("No layer was measured: it takes a step of the optimizer, and")
    assert not alone.figures
    assert not alone.absence
    # The last measurement of a run may know of no step; that takes nothing from those before it.
    assert "turned the gradient" in ask(write_measurements, measured(5, a=(90, 9.0)), measured(10)).answers["run"]


def test_without_the_probe_it_is_not_measured(empty_run):
    question = do_layers_chase_each_other({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe covariate_shift reads")
    assert not question.answers
