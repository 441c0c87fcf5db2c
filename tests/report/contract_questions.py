"""Every question of report/questions, found by walking the package."""

from __future__ import annotations

import pytest

from normlens import catalog
from normlens.report.question import Question

QUESTIONS = catalog.names("normlens.report.questions")


@pytest.fixture(params=QUESTIONS)
def ask(request):
    return catalog.load("normlens.report.questions", request.param)


def test_a_question_is_answered_for_every_run_in_a_sentence(ask, four_runs):
    question = ask(four_runs)
    assert isinstance(question, Question)
    assert question.heading.endswith("?")
    assert set(question.answers) <= set(four_runs)
    for words in question.answers.values():
        assert words[0].isupper()
        assert words.endswith(".")
    assert question.figures
    assert len(question.table)


def test_a_method_note_has_all_its_parts(ask, healthy_run):
    note = ask({"run": healthy_run}).method
    assert {"estimator", "mode", "sample size", "error", "cost", "reference"} == set(note)
    assert note["mode"] == "eval"
    assert "6 measurements" in note["cost"]
    assert note["sample size"].startswith("n = ")


def test_what_was_not_measured_is_said_with_the_reason(ask, write_measurements):
    from normlens.run.reading import Measurement

    probes = (
        "training_curve", "elimination", "activation_drift", "condition_number", "edge_of_stability",
        "hessian_spectrum", "loss_surface", "weight_dynamics", "self_normalization", "representation_alignment",
        "mutual_information", "variance_shift", "predictive_entropy", "calibration", "quantization_error",
        "batch_noise", "rank_collapse", "activation_condition", "gradient_predictiveness", "covariate_shift",
        "cancellation", "singularity", "fisher_vector", "saturation",
    )  # fmt: skip
    starved = write_measurements([Measurement(0, probe, "starved", "would have cost 9 s") for probe in probes])
    question = ask({"run": starved})
    assert not question.figures
    assert not question.answers
    assert question.absence.startswith("Not measured: no run holds what the probe")
    assert "would have cost 9 s" in question.absence


def test_questions_come_in_an_order_without_ties(healthy_run):
    asked = [catalog.load("normlens.report.questions", name)({"run": healthy_run}) for name in QUESTIONS]
    assert len({question.order for question in asked}) == len(asked)
    headings = [question.heading for question in sorted(asked, key=lambda q: q.order)]
    assert headings[:3] == ["Did it learn?", "Are channels dying?", "Are units saturated?"]
