from __future__ import annotations

import math

from normlens.report.questions.how_fast_do_weights_turn import how_fast_do_weights_turn
from normlens.run.reading import Measurement, Reading


def layer(name, rate, angle=None, settled=None, invariance=None):
    values = {"effective_rate": rate, "angle": angle, "angle_equilibrium": settled, "invariance": invariance}
    return [Reading(key, value, layer=name) for key, value in values.items() if value is not None]


def answer(write_measurements, *steps):
    records = [Measurement(10 * i, "weight_dynamics", readings=tuple(step)) for i, step in enumerate(steps)]
    return how_fast_do_weights_turn({"run": write_measurements(records)}).answers["run"]


def test_the_answer_gives_the_medians_and_counts_the_invariant_layers(write_measurements):
    first = [*layer("a", 0.5), *layer("b", 0.25), *layer("c", 0.125)]
    last = [*layer("a", 0.2, 0.04, 0.02, 1e-5), *layer("b", 0.1, 0.03, 0.02, 2e-4), *layer("c", 0.3, 0.01, 0.02, 9e-5)]
    assert answer(write_measurements, first, last) == (
        "The effective learning rate went from 0.25 to 0.2 at step 10 (median of 3 layers), and step 10 turned the "
        "weights by 0.03 rad, 1.5 times the 0.02 at which scale-invariant weights settle; the loss does not depend on "
        "the weights' length in 2 of 3 layers."
    )


def test_the_angle_is_of_the_last_step_that_was_recorded_and_may_have_no_equilibrium(write_measurements):
    assert answer(write_measurements, layer("a", 0.5), layer("a", 0.4, 0.03), layer("a", 0.3)) == (
        "The effective learning rate went from 0.5 to 0.3 at step 20, and step 10 turned the weights by 0.03 rad."
    )
    assert answer(write_measurements, layer("a", 0.5)).endswith("; no step of the optimizer was recorded.")


def test_what_is_not_a_number_is_said(write_measurements):
    lost = answer(
        write_measurements, layer("a", 0.5), [*layer("a", 0.5, 0.1), *layer("b", math.nan, 0.1, None, math.nan)]
    )
    assert lost == (
        "The effective learning rate is not a number at step 10; the loss does not depend on the weights' length in 0 "
        "of 1 layers (1 not known)."
    )
    turned = answer(write_measurements, layer("a", 0.5, math.nan))
    assert turned.endswith(", and the angle of step 0 is not a number.")


def test_without_the_probe_it_is_not_measured(empty_run):
    question = how_fast_do_weights_turn({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe weight_dynamics reads")
    assert not question.answers
