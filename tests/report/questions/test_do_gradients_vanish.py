from __future__ import annotations

from normlens.report.questions.do_gradients_vanish import do_gradients_vanish


def test_the_answer_gives_both_ends_and_the_peak(healthy_run, sick_run):
    answers = do_gradients_vanish({"well": healthy_run, "ill": sick_run}).answers
    assert answers["well"] == "The gradient's norm went from 2.07 to 0.108, its largest value was 2.07 at step 0."
    assert answers["ill"] == "The gradient is not finite at step 180, the first of 3 such steps."
