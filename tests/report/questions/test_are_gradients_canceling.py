from __future__ import annotations

import math

from normlens.report.questions.are_gradients_canceling import are_gradients_canceling
from normlens.run.reading import Measurement, Reading


def ask(write_measurements, **layers):
    """Each layer with what all of it, its places and its samples leave."""
    names = ("cancellation", "within_samples", "across_samples")
    readings = [
        Reading(name, value, layer=layer, n=8)
        for layer, values in layers.items()
        for name, value in zip(names, values, strict=False)
    ]
    readings += [] if layers else [Reading("layers", 0.0)]
    return are_gradients_canceling(
        {"run": write_measurements([Measurement(9, "cancellation", readings=tuple(readings))])}
    )


def test_the_answer_names_the_layers_with_most_and_least_and_what_places_and_samples_take(write_measurements):
    found = ask(write_measurements, a=(40.0, 3.0, 6.0), b=(20.0, 2.0, 5.0), head=(4.0,))
    assert found.answers["run"] == (
        "At step 9 1 part in 40 of the contributions is left in a and 1 in 4 in head; there the places of a sample "
        "leave 1 in 3, the samples at a place 1 in 6."
    )
    alone = ask(write_measurements, head=(4.0,))
    assert alone.answers["run"] == "At step 9 1 part in 4 of the contributions is left in head."


def test_what_is_not_finite_is_counted(write_measurements):
    some = ask(write_measurements, a=(math.inf, 1.0, 1.0), head=(4.0,))
    assert some.answers["run"].endswith("is left in head; 1 of 2 layers are not finite.")
    none = ask(write_measurements, a=(math.nan,))
    assert none.answers["run"] == "At step 9 nothing is left, or it is not a number, in any of 1 layers."


def test_a_model_without_such_layers_is_said_to_have_nothing_to_cancel(write_measurements):
    nothing = ask(write_measurements)
    assert nothing.answers["run"].startswith("The model calls no linear layer or convolution")
    assert not nothing.figures


def test_without_the_probe_it_is_not_measured(empty_run):
    question = are_gradients_canceling({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe cancellation reads")
    assert not question.answers
