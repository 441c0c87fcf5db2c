from __future__ import annotations

import math

import pytest

from normlens import plot
from normlens.report.questions.do_inputs_drift import do_inputs_drift
from normlens.run.reading import Measurement, Reading


def test_the_answer_counts_layers_beyond_the_floor_and_gives_the_largest_with_its_error(four_runs, sick_run):
    answers = do_inputs_drift({**four_runs, "sick": sick_run}).answers
    assert answers["batch_norm"] == (
        "No, none of 2 layers is beyond its null floor at step 300; as whole distributions (W1) none."
    )
    assert answers["layer_norm"] == (
        "Yes, 2 of 2 layers at step 300, most block3.conv, by 8 ± 0.075 floors; as whole distributions (W1) 2 of 2, "
        "most block3.conv, by 8 floors."
    )
    assert answers["sick"] == (
        "The drift of block2.conv is not a number from step 180: its input is not finite, or every "
        "channel of it is constant."
    )
    assert "none" not in answers  # it starved there


@pytest.fixture
def ask(write_measurements):
    def ask(**layers):
        """Each layer with its shift and its W1 in floors; None for a W1 that was not recorded."""
        readings = []
        for layer, (shift, w1) in layers.items():
            values = {"mean_shift_first": shift, "mean_shift_floor": 1.0}
            if w1 is not None:
                values |= {"w1_first": 0.5 * w1, "w1_floor": 0.5}
            readings += [Reading(name, value, layer=layer, n=16) for name, value in values.items()]
        return do_inputs_drift({"run": write_measurements([Measurement(9, "activation_drift", readings=readings)])})

    return ask


def test_a_change_of_shape_is_told_where_the_means_stand_still(ask):
    assert ask(a=(0.5, 3.0), b=(0.5, 0.9)).answers["run"] == (
        "No, none of 2 layers is beyond its null floor at step 9; as whole distributions (W1) 1 of 2, "
        "most a, by 3 floors."
    )


def test_a_run_without_distributions_is_answered_from_its_means(ask):
    question = ask(a=(0.5, None))
    assert question.answers["run"] == "No, none of 1 layers is beyond its null floor at step 9."
    assert question.figures == (plot.activation_drift,)
    assert "w1_ratio" not in question.table


def test_distributions_that_are_not_finite_are_left_to_the_first_sentence(ask):
    assert ask(a=(2.0, math.nan)).answers["run"] == "Yes, 1 of 1 layers at step 9, most a, by 2 floors."


def test_the_table_holds_every_measure_over_its_floor_and_the_ridge_is_shown(healthy_run):
    question = do_inputs_drift({"run": healthy_run})
    ratios = ["ratio", "log_scale_ratio", "kl_ratio", "w1_ratio", "ks_ratio"]
    assert set(ratios) <= set(question.table)
    last = question.table[question.table["step"] == 300].set_index("layer").loc["block3.conv"]
    assert last[ratios].tolist() == pytest.approx([1.0] * 5)  # 0.04 * 0.5 * 2 over 0.04
    assert question.figures == (plot.activation_drift, plot.activation_ridge)
