from __future__ import annotations

from normlens.report.questions.do_inputs_drift import do_inputs_drift


def test_the_answer_counts_layers_beyond_the_floor_and_gives_the_largest_with_its_error(four_runs, sick_run):
    answers = do_inputs_drift({**four_runs, "sick": sick_run}).answers
    assert answers["batch_norm"] == "No, none of 2 layers is beyond its null floor at step 300."
    assert answers["layer_norm"] == "Yes, 2 of 2 layers at step 300, most block3.conv, by 8 ± 0.075 floors."
    assert answers["sick"] == (
        "The drift of block2.conv is not a number from step 180: its input is not finite, or every "
        "channel of it is constant."
    )
    assert "none" not in answers  # it starved there
