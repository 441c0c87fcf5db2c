from __future__ import annotations

from normlens.report.questions.did_it_learn import did_it_learn


def test_the_answer_is_computed_from_loss_and_test_accuracy(make_run, healthy_run):
    runs = {"well": healthy_run, "ill": make_run(nan_from=180), "up": make_run(final_loss=5.0)}
    answers = did_it_learn(runs).answers
    assert answers["well"] == "Yes, the loss fell from 2.3 to 0.12 ± 0.0024 in 300 steps, test accuracy 93.0 %."
    assert answers["ill"] == "No, the loss is not finite at step 180, the first of 3 such steps."
    assert answers["up"].startswith("No, the loss rose from 2.3 to 4.92")
