from __future__ import annotations

import pytest

from normlens.report.questions.how_singular_is_the_fisher_matrix import how_singular_is_the_fisher_matrix
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def ask(write_measurements):
    def ask(too_large=0, **layers):
        """The answer for layers with these readings."""
        readings = [Reading("layers", float(len(layers))), Reading("too_large", float(too_large))]
        readings.append(Reading("tolerance", 1e-10))
        for layer, values in layers.items():
            given = {"parameters": 100, "units": 8, "channels": 8, "forced": 0, "smallest": 1e-3, **values}
            readings += [Reading(name, float(value), layer=layer, n=64) for name, value in given.items()]
        run = write_measurements([Measurement(30, "singularity", readings=tuple(readings))])
        return how_singular_is_the_fisher_matrix({"run": run})

    return ask


def known(nullity, predicted, regular, **kinds):
    return {"nullity": nullity, "predicted": predicted, "regular": regular, **kinds}


def test_the_answer_names_the_most_singular_layer_its_prediction_and_its_units(ask):
    words = ask(a=known(9, 9, 8), b=known(30, 28, 10, dead=2, outgoing=1, incoming=0, overlapping=2, seldom=1)).answers[
        "run"
    ]
    assert words == (
        "At step 30, 30 of 100 directions are null in b, where 28 are predicted and 10 are regular; units: 2 dead, "
        "1 without outgoing weights, 2 overlapping, 1 on too seldom to see all; at a tolerance of 1e-10."
    )


def test_a_part_of_the_units_a_missing_gap_and_forced_nullities_are_said(ask):
    words = ask(
        2, a={**known(30, 28, 10), "units": 2, "smallest": 3e-10}, b={**known(50, 50, 50), "forced": 50}
    ).answers["run"]
    assert words == (
        "At step 30, 30 of 100 directions (those of 2 of 8 units) are null in a, where 28 are predicted and 10 are "
        "regular; at a tolerance of 1e-10, with other eigenvalues down to 3e−10: there is no gap; too few samples "
        "force 50 in b; 2 more hidden layers are too large to be measured."
    )


def test_what_has_no_prediction_is_counted_beyond_what_the_samples_force(ask):
    words = ask(a={"nullity": 30, "forced": 30}, b={"nullity": 5}).answers["run"]
    assert words.startswith("At step 30, 5 of 100 directions are null in b; at a tolerance")


def test_without_hidden_layers_or_with_too_large_ones_that_is_the_answer(ask):
    assert ask().answers["run"].startswith("The model's graph shows no hidden layer")
    assert ask(3).answers["run"] == "3 hidden layers are too large to be measured; raise max_parameters."
    assert ask(1).answers["run"].startswith("The one hidden layer that is known is too large")


def test_without_the_probe_it_is_not_measured(empty_run):
    question = how_singular_is_the_fisher_matrix({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe singularity reads")
    assert not question.answers
