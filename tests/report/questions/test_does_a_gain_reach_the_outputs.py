from __future__ import annotations

import math

from normlens.report.questions.does_a_gain_reach_the_outputs import does_a_gain_reach_the_outputs
from normlens.run.reading import Measurement, Reading


def answer(write_measurements, spreads=None, **sensitivities):
    readings = [Reading("gain_sensitivity", value, layer=layer) for layer, value in sensitivities.items()]
    readings += [Reading("unit_spread", value, layer=layer) for layer, value in (spreads or {}).items()]
    early = (Reading("gain_sensitivity", 7.0, layer="a"), Reading("unit_spread", 7.0, layer="a"))
    records = [Measurement(step, "self_normalization", readings=r) for step, r in ((0, early), (20, tuple(readings)))]
    return does_a_gain_reach_the_outputs({"run": write_measurements(records)}).answers["run"]


def test_the_answer_counts_the_layers_of_the_last_step_and_names_the_worst(write_measurements):
    assert answer(write_measurements, {"r": 0.25, "s": 0.5}, a=0.001, b=0.5, c=0.75, d=0.01) == (
        "That of 3 of 4 layers does, at step 20; 1 of 4 normalize it away (to below 0.01 of it); most gets through in "
        "c: 0.75 times the gain; the scales of the units spread by at most 50 % (s)."
    )


def test_where_all_layers_normalize_themselves_the_answer_is_no(write_measurements):
    assert answer(write_measurements, a=0.001, b=0.005) == (
        "No, at step 20; 2 of 2 normalize it away (to below 0.01 of it); most gets through in b: 0.005 times the gain."
    )


def test_what_is_not_finite_is_counted_apart(write_measurements):
    words = answer(write_measurements, {"r": math.nan}, a=0.001, b=math.nan, c=1.0)
    assert words == (
        "That of 1 of 3 layers does, at step 20; 1 of 3 normalize it away (to below 0.01 of it), of 1 it is not known; "
        "most gets through in c: 1 times the gain."
    )
    assert answer(write_measurements, a=math.nan, b=math.inf) == (
        "The change of the outputs is not finite for any of 2 layers at step 20."
    )


def test_without_the_probe_it_is_not_measured(empty_run):
    question = does_a_gain_reach_the_outputs({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe self_normalization reads")
    assert not question.answers
