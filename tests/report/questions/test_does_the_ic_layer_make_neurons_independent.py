from __future__ import annotations

import math

import numpy as np
import pytest

from normlens.report.questions.does_the_ic_layer_make_neurons_independent import (
    does_the_ic_layer_make_neurons_independent,
)
from normlens.run.reading import Measurement, Reading

PROBE = "mutual_information"


def of_layer(layer, ratio, within=None, zeros=0.0, label=None):
    found = [
        Reading("ratio", ratio, layer=layer, error=0.02, n=256),
        Reading("ratio_predicted", 0.81, layer=layer),
        Reading("zeros", zeros, layer=layer, n=256),
        Reading("keep_prob", 0.9, layer=layer),
    ]
    if within is not None:
        found += [Reading("within_ratio", within, layer=layer, error=0.3, n=256)]
        found += [Reading("within_ratio_predicted", 3.5, layer=layer)]
    if label is not None:
        found.append(Reading("label_ratio", label, layer=layer, error=0.01, n=256))
    return found


@pytest.fixture
def ask(write_measurements):
    def ask(*layers, more=()):
        readings = [Reading("layers", float(len(layers))), *(r for layer in layers for r in layer), *more]
        early = (Reading("ratio", 9.0, layer="a", n=9), Reading("ratio_predicted", 9.0, layer="a"))
        steps = ((0, early if layers else ()), (30, tuple(readings)))
        return write_measurements([Measurement(step, PROBE, readings=r) for step, r in steps])

    return ask


def answer(run):
    return does_the_ic_layer_make_neurons_independent({"run": run}).answers["run"]


def test_the_answer_gives_what_is_left_behind_each_dropout_at_the_last_step_and_what_theory_says(ask):
    assert answer(ask(of_layer("a", 0.8), of_layer("b", 0.83, within=3.25))) == (
        "At step 30, of what two channels tell of each other 80 ± 2 % is left behind a (theory 81), 83 ± 2 % is left "
        "behind b (theory 81); of what neighbors in a channel tell of each other 325 ± 30 % is left behind b (theory "
        "350)."
    )


def test_many_layers_are_counted_and_not_listed(ask):
    assert answer(ask(*(of_layer(name, 0.8) for name in "abcde"))).endswith(
        "behind c (theory 81), and so on for 2 more."
    )
    assert answer(ask(*(of_layer(name, 0.8) for name in "abcd"))).endswith("behind c (theory 81), and one more.")


def test_hidden_gates_and_the_price_in_labels_are_said(ask):
    words = answer(ask(of_layer("a", 0.6, zeros=0.5, label=0.95), of_layer("b", 0.6, zeros=0.25, label=0.9)))
    assert "; up to 50 % of the values before the gates are zero and hide them; " in words
    assert words.endswith("of what a value tells of the label 90 % is left behind b.")


def test_what_is_not_known_is_said(ask):
    words = answer(ask(of_layer("a", 0.8), of_layer("b", math.nan)))
    assert words.endswith("; 1 of 2 ratios are not known, for want of information before the gates.")
    assert answer(ask(of_layer("a", math.nan))).startswith("At step 30, pairs tell too little of each other before")


def test_pairs_and_matrix_are_shown_where_they_were_recorded(ask):
    alone = does_the_ic_layer_make_neurons_independent({"run": ask(of_layer("a", 0.8))})
    assert [figure.__name__ for figure in alone.figures] == ["information_ratio"]
    more = [
        Reading(name, np.ones(2), layer="a", units="nats", dims=("pair",), n=256) for name in ("before", "after")
    ] + [
        Reading(name, np.ones((2, 2)), layer="a", units="nats", dims=("channel", "other_channel"), n=256)
        for name in ("matrix_before", "matrix_after")
    ]
    whole = does_the_ic_layer_make_neurons_independent({"run": ask(of_layer("a", 0.8), more=more)})
    names = ["information_ratio", "mutual_information", "mutual_information_matrix"]
    assert [figure.__name__ for figure in whole.figures] == names


def test_a_model_without_dropout_is_said_to_have_no_gates(ask):
    nothing = does_the_ic_layer_make_neurons_independent({"run": ask()})
    assert nothing.answers["run"].startswith("The model has no dropout and no independent-component layer")
    assert not nothing.figures
    beside = does_the_ic_layer_make_neurons_independent({"none": ask(), "with": ask(of_layer("a", 0.8))})
    assert beside.answers["none"] == nothing.answers["run"]
    assert set(beside.table["run"]) == {"with"}


def test_without_the_probe_it_is_not_measured(empty_run):
    question = does_the_ic_layer_make_neurons_independent({"run": empty_run})
    assert question.absence.startswith(f"Not measured: no run holds what the probe {PROBE} reads")
    assert not question.answers
