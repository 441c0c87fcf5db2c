from __future__ import annotations

import math

import pytest

from normlens.plot.saturation import HALF as DRAWN
from normlens.report.questions.are_units_saturated import are_units_saturated
from normlens.report.rules.saturated import HALF as DIAGNOSED
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def answer(write_measurements):
    def answer(**shares):
        readings = [Reading("layers", float(len(shares)))]
        readings += [Reading("saturated", share, layer=layer, error=0.01, n=64) for layer, share in shares.items()]
        run = write_measurements([Measurement(30, "saturation", readings=tuple(readings))])
        return are_units_saturated({"run": run}).answers["run"]

    return answer


@pytest.mark.parametrize(("share", "begin"), [(0.5, "Yes"), (0.25, "No")])
def test_the_answer_names_the_layer_with_the_largest_share(answer, share, begin):
    assert answer(a=0.125, b=share) == (
        f"{begin}: at step 30 {100 * share:g} ± 1 % of the values are where b is flat, and less in the others."
    )


def test_of_a_single_layer_no_others_are_told_of(answer):
    assert answer(a=0.25) == "No: at step 30 25 ± 1 % of the values are where a is flat."


def test_the_figure_the_question_and_the_diagnosis_have_one_threshold():
    assert DIAGNOSED == DRAWN


def test_shares_that_are_not_finite_and_a_model_without_bounded_nonlinearities_are_said(answer):
    assert answer(a=math.nan) == "The share is not finite in any of 1 layers at step 30."
    assert answer().startswith("The model has no bounded nonlinearity")
