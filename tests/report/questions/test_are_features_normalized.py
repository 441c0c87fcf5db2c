from __future__ import annotations

from normlens.report.questions.are_features_normalized import are_features_normalized


def test_the_answer_gives_the_largest_and_where(four_runs):
    answers = are_features_normalized(four_runs).answers
    assert answers["layer_norm"] == "At most 1.5 (the mean of block3.norm)."
    assert answers["batch_norm"].startswith("At most 0 ")
