from __future__ import annotations

import math

import pytest

from normlens.report.questions.how_predictive_is_the_gradient import how_predictive_is_the_gradient
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def answer(write_measurements):
    def answer(*steps):
        """Each step with its largest change and its smoothness."""
        records = []
        for i, (change, smoothness) in enumerate(steps):
            values = {"loss_min": 0.5, "loss_max": 0.75, "change_min": change / 4, "change_max": change}
            values |= {"gradient_norm": 2.0, "smoothness": smoothness}
            readings = tuple(Reading(name, value, n=8) for name, value in values.items())
            records.append(Measurement(10 * i, "gradient_predictiveness", readings=readings))
        return how_predictive_is_the_gradient({"run": write_measurements(records)}).answers["run"]

    return answer


def test_the_answer_gives_the_last_ranges_and_both_ends_of_the_smoothness(answer):
    assert answer((1.0, 3.0), (0.8, 5.0)) == (
        "At step 10 the gradient changes along the probed steps by 0.1 to 0.4 of its norm, and the loss there lies "
        "between 0.5 and 0.75; the effective smoothness went from 3 to 5."
    )
    assert answer((1.0, 3.0)).endswith("; the effective smoothness was 3.")


def test_what_is_no_number_is_said(answer):
    assert answer((1.0, 3.0), (math.nan, math.nan)) == (
        "At step 10 the change of the gradient is not a number; the effective smoothness was 3."
    )
    assert answer((math.nan, math.nan)) == "At step 0 the change of the gradient is not a number."


def test_without_the_probe_it_is_not_measured(empty_run):
    question = how_predictive_is_the_gradient({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe gradient_predictiveness reads")
    assert not question.answers
