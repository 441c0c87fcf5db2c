from __future__ import annotations

import math

import pytest

from normlens.report.questions.do_representations_collapse import do_representations_collapse
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def ask(write_measurements):
    def ask(**layers):
        """Each layer with its rank about the mean and with it."""
        readings = [] if layers else [Reading("layers", 0.0)]
        for layer, (centered, whole) in layers.items():
            readings += [
                Reading("effective_rank_centered", centered, error=0.5, layer=layer, n=100),
                Reading("effective_rank", whole, layer=layer, n=100),
                Reading("width", 200.0, layer=layer),
                Reading("mean_share", 0.75, layer=layer),
            ]
        return write_measurements([Measurement(30, "rank_collapse", readings=tuple(readings))])

    return ask


def answer(run):
    return do_representations_collapse({"run": run}).answers["run"]


@pytest.mark.parametrize(("rank", "begin"), [(50.0, "No"), (1.5, "No"), (1.25, "Nearly")])
def test_the_answer_names_the_narrowest_layer_and_the_mean_s_share(ask, rank, begin):
    assert answer(ask(a=(60.0, 1.0), b=(rank, 2.0))) == (
        f"{begin}: at step 30 the narrowest layer (b) spreads 100 samples over {rank:g} ± 0.5 of 100 directions about "
        "their mean, which holds 75 % of their energy."
    )


def test_samples_that_are_all_the_same_are_a_collapse(ask):
    words = answer(ask(a=(60.0, 1.0), b=(0.0, 1.0), c=(0.0, 0.0)))
    assert words == "Yes, at step 30 all samples are the same in 2 of 3 layers (b, …)."


def test_what_is_not_finite_is_said(ask):
    assert answer(ask(a=(math.nan, math.nan))) == "The rank is not finite in any of 1 layers at step 30."


def test_a_model_with_nothing_to_look_at_is_said_to_have_nothing(ask):
    alone = do_representations_collapse({"run": ask()})
    assert alone.answers["run"].startswith("The model has no nonlinearity that is a module")
    assert not alone.figures
    assert not alone.absence


def test_without_the_probe_it_is_not_measured(empty_run):
    question = do_representations_collapse({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe rank_collapse reads")
