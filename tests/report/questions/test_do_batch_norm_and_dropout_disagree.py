from __future__ import annotations

import math

import pytest

from normlens.report.questions.do_batch_norm_and_dropout_disagree import do_batch_norm_and_dropout_disagree
from normlens.run.reading import Measurement, Reading

PROBE = "variance_shift"


@pytest.fixture
def ask(write_measurements):
    def ask(**layers):
        """Each layer with the dropouts before it, its shift, what its dropout predicts, and use over running."""
        readings = [Reading("layers", float(len(layers)))]
        for layer, (before, shift, predicted, running) in layers.items():
            readings += [
                Reading("dropouts_before", float(before), layer=layer),
                Reading("shift", shift, layer=layer, error=0.01, n=256),
                Reading("eval_to_running", running, layer=layer, error=0.01, n=256),
            ]
            if predicted is not None:
                readings.append(Reading("shift_predicted", predicted, layer=layer))
        early = (Reading("shift", 9.0, layer="a", n=256),) if layers else ()
        return write_measurements(
            [Measurement(step, PROBE, readings=r) for step, r in ((0, early), (30, tuple(readings)))]
        )

    return ask


def answer(run):
    return do_batch_norm_and_dropout_disagree({"run": run}).answers["run"]


def test_the_answer_is_about_the_largest_shift_behind_a_dropout_at_the_last_step(ask):
    assert answer(ask(a=(0, 3.0, None, 1.0), b=(1, 1.25, 1.2, 0.8), c=(1, 1.1, None, 0.9))) == (
        "At step 30, the input of b varies 1.25 ± 0.01 times as much in training as in use (its dropout alone makes "
        "1.2), and in use 0.8 times as its running variance says; that is the most of 2 batch norms behind a dropout."
    )


def test_a_shrinking_variance_is_as_bad_as_a_growing_one(ask):
    assert "the input of b varies 0.5 ± 0.01 times" in answer(ask(a=(1, 1.9, None, 1.0), b=(1, 0.5, None, 1.0)))


def test_without_dropout_before_any_it_is_about_the_running_statistics_alone(ask):
    words = answer(ask(a=(0, 1.5, None, 0.6), b=(0, 1.1, None, 0.9)))
    assert words.startswith("At step 30, the input of a varies 1.5 ± 0.01 times as much in training as in use, and in")
    assert words.endswith("; no dropout is before it.")


def test_what_is_not_known_is_said(ask):
    assert answer(ask(a=(1, math.nan, None, math.nan))) == "At step 30, the variances are not known."


def test_a_model_without_batch_norm_has_nothing_to_disagree_with(ask):
    nothing = do_batch_norm_and_dropout_disagree({"run": ask()})
    assert nothing.answers["run"].startswith("The model has no batch norm with a running variance")
    assert not nothing.figures
    beside = do_batch_norm_and_dropout_disagree({"none": ask(), "with": ask(a=(1, 1.5, None, 0.6))})
    assert beside.answers["none"] == nothing.answers["run"]
    assert set(beside.table["run"]) == {"with"}


def test_without_the_probe_it_is_not_measured(empty_run):
    question = do_batch_norm_and_dropout_disagree({"run": empty_run})
    assert question.absence.startswith(f"Not measured: no run holds what the probe {PROBE} reads")
    assert not question.answers
