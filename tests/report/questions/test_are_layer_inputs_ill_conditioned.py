from __future__ import annotations

import math

import pytest

from normlens.report.questions.are_layer_inputs_ill_conditioned import are_layer_inputs_ill_conditioned
from normlens.run.reading import Measurement, Reading

MATRICES = ("raw", "centered", "normalized")


@pytest.fixture
def ask(write_measurements):
    def ask(nullity=0.0, **layers):
        readings = [] if layers else [Reading("layers", 0.0), Reading("left_out", 0.0)]
        for layer, kappas in layers.items():
            readings += [Reading(f"kappa_{m}", k, layer=layer, n=64) for m, k in zip(MATRICES, kappas, strict=True)]
            readings += [Reading(f"nullity_{matrix}", nullity, layer=layer, n=64) for matrix in MATRICES]
        return write_measurements([Measurement(30, "activation_condition", readings=tuple(readings))])

    return ask


def answer(run):
    return are_layer_inputs_ill_conditioned({"run": run}).answers["run"]


def test_the_answer_gives_the_worst_input_and_what_would_be_gained(ask):
    assert answer(ask(a=(10.0, 9.0, 8.0), b=(90.0, 9.0, 3.0))) == (
        "The worst input has a condition number of 90 (b, step 30); centering makes it 9 and normalizing 3: most of it "
        "is its mean."
    )
    assert answer(ask(a=(90.0, 80.0, 3.0))).endswith("normalizing 3: its scales differ, rather than its mean.")
    assert answer(ask(a=(90.0, 80.0, 70.0))).endswith("normalizing 70, so that neither would help much.")


def test_directions_that_were_not_counted_are_said(ask):
    words = answer(ask(7.0, a=(10.0, 9.0, 8.0)))
    assert "(a, step 30), 7 directions below the tolerance not counted; centering" in words


def test_what_is_not_finite_is_said_and_a_model_without_such_layers(ask):
    lost = answer(ask(a=(math.nan,) * 3))
    assert lost == "The condition number is not finite in any of 1 layers at step 30."
    nothing = are_layer_inputs_ill_conditioned({"run": ask()})
    assert nothing.answers["run"].startswith("The model has no layer behind another one")
    assert not nothing.absence


def test_without_the_probe_it_is_not_measured(empty_run):
    question = are_layer_inputs_ill_conditioned({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe activation_condition reads")
