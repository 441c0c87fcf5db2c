from __future__ import annotations

import math

import pytest

from normlens.report.questions.does_calibration_undo_weight_noise import does_calibration_undo_weight_noise
from normlens.run.reading import Measurement, Reading

STATES = ("clean", "noisy", "calibrated")


def answer(write_measurements, accuracies, ece=(0.1, 0.2, 0.3), layers=("a", "b"), error=0.01, settings=None):
    readings = [Reading(f"accuracy_{s}", a, error=error, n=50) for s, a in zip(STATES, accuracies, strict=True)]
    readings += [Reading(f"ece_{s}", e, n=50) for s, e in zip(STATES, ece, strict=True)]
    readings += [Reading("mean_shift_clean", 0.1, layer=layer, n=50) for layer in layers]
    early = tuple(Reading(f"accuracy_{state}", 0.5) for state in STATES)
    records = [Measurement(step, "calibration", readings=r) for step, r in ((0, early), (9, tuple(readings)))]
    run = write_measurements(records, {"probes": {"calibration": settings or {}}})
    return does_calibration_undo_weight_noise({"run": run}).answers["run"]


def test_the_answer_gives_what_noise_costs_and_what_calibration_returns(write_measurements):
    assert answer(write_measurements, (0.9, 0.6, 0.8)) == (
        "At step 9 noise costs 30 points of accuracy (90.0 ± 1.0 % → 60.0 ± 1.0 %); calibration of 2 batch norms "
        "changes it by 20 points, to 80.0 ± 1.0 %; calibration error 0.1 clean, 0.2 noisy, 0.3 calibrated."
    )
    assert "1 batch norm changes it by −10 points" in answer(write_measurements, (0.9, 0.6, 0.5), layers=("a",))


def test_a_model_without_batch_norm_is_said_to_have_nothing_to_calibrate(write_measurements):
    assert answer(write_measurements, (0.9, 0.6, 0.6), layers=(), error=math.nan) == (
        "At step 9 noise costs 30 points of accuracy (90.0 % → 60.0 %); the model has no batch norm to calibrate; "
        "calibration error 0.1 clean, 0.2 noisy."
    )


@pytest.mark.parametrize("noisy", [0.89, 0.95])
def test_where_noise_costs_next_to_nothing_there_is_little_to_undo(write_measurements, noisy):
    words = answer(write_measurements, (0.9, noisy, 0.9))
    assert words.startswith("There is little to undo, at step 9 noise costs less than 2 points of accuracy (90.0")


def test_the_noise_is_named_as_in_the_settings_of_the_probe(write_measurements):
    words = answer(write_measurements, (0.9, 0.6, 0.8), settings={"kind": "'uniform'", "scale": "0.25"})
    assert words.startswith("At step 9 uniform noise of scale 0.25 costs 30 points")


def test_what_is_not_a_number_is_said(write_measurements):
    assert answer(write_measurements, (0.9, math.nan, 0.8)) == "At step 9 the accuracy is not a number."


def test_without_the_probe_it_is_not_measured(empty_run):
    question = does_calibration_undo_weight_noise({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe calibration reads")
    assert not question.answers
