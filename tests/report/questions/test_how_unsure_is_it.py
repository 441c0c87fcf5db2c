from __future__ import annotations

import math

from normlens.report.questions.how_unsure_is_it import how_unsure_is_it
from normlens.run.reading import Measurement, Reading


def answer(write_measurements, entropy, noise=0.0, draws=20.0, error=0.125):
    readings = (
        Reading("entropy", entropy, error=error, units="nats", n=64),
        Reading("mutual_information", noise, error=error / 2, units="nats", n=64),
        Reading("largest", math.log(16), units="nats"),
        Reading("draws", draws),
    )
    early = (Reading("entropy", 2.5), Reading("mutual_information", 0.5), Reading("draws", 3.0))
    records = [Measurement(step, "predictive_entropy", readings=r) for step, r in ((0, early), (40, readings))]
    return how_unsure_is_it({"run": write_measurements(records)}).answers["run"]


def test_the_answer_gives_the_last_entropy_its_share_of_a_guess_and_the_noise(write_measurements):
    assert answer(write_measurements, math.log(2), 0.25) == (
        "By 0.693 ± 0.125 nats at step 40, 25 % of a guess among 16 classes; 0.25 ± 0.0625 of them are its own noise "
        "(20 passes)."
    )


def test_where_nothing_is_random_the_answer_says_so(write_measurements):
    assert answer(write_measurements, math.log(4), draws=1.0, error=math.nan) == (
        "By 1.39 nats at step 40, 50 % of a guess among 16 classes; nothing in it is random, so none of that is its "
        "own noise."
    )


def test_what_is_not_a_number_is_said(write_measurements):
    assert answer(write_measurements, math.nan) == "The entropy is not a number at step 40."


def test_without_the_probe_it_is_not_measured(empty_run):
    question = how_unsure_is_it({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe predictive_entropy reads")
    assert not question.answers
