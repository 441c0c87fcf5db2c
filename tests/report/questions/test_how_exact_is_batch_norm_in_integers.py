from __future__ import annotations

import math

import pytest

from normlens.report.questions.how_exact_is_batch_norm_in_integers import how_exact_is_batch_norm_in_integers
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def ask(write_measurements):
    def ask(inexact=0.0, settings=None, **layers):
        """Each layer with its rms and its largest error."""
        readings = [Reading("layers", float(len(layers)))]
        for layer, (rms, largest) in layers.items():
            values = {"rms": rms, "max": largest, "inexact": inexact}
            readings += [Reading(name, value, layer=layer, n=16) for name, value in values.items()]
        early = (Reading("rms", 9.0, layer="a", n=16), Reading("max", 9.0, layer="a", n=16)) if layers else ()
        steps = ((0, early), (30, tuple(readings)))
        records = [Measurement(step, "quantization_error", readings=r) for step, r in steps]
        return write_measurements(records, {"probes": {"quantization_error": settings or {}}})

    return ask


def answer(run):
    return how_exact_is_batch_norm_in_integers({"run": run}).answers["run"]


def test_the_answer_gives_the_largest_errors_of_the_last_step_and_their_layers(ask):
    assert answer(ask(a=(0.5, 1.25), b=(0.25, 2.0))) == (
        "At step 30, 2 batch norms are off by at most 2 LSB (b), and by an rms of at most 0.5 LSB (a), where rounding "
        "the output alone makes 0.289."
    )


def test_bits_and_channels_that_are_not_exact_are_said(ask):
    words = answer(ask(inexact=3.0, settings={"bits": "6"}, a=(0.5, 1.0), b=(0.5, 1.0)))
    assert words.endswith("; inputs and outputs have 6 bits; for 6 channels a shift by 31 is too small to be exact.")
    assert answer(ask(a=(0.5, 1.0))).startswith("At step 30, 1 batch norm is off by at most 1 LSB (a)")


def test_a_model_without_batch_norm_is_said_to_have_nothing_to_quantize(ask):
    nothing = "The model has no batch norm with one scale and one shift per channel, so there is nothing to quantize."
    alone = how_exact_is_batch_norm_in_integers({"run": ask()})
    assert alone.answers == {"run": nothing}
    assert not alone.figures
    beside = how_exact_is_batch_norm_in_integers({"none": ask(), "with": ask(a=(0.5, 1.0))})
    assert beside.answers["none"] == nothing
    assert beside.answers["with"].startswith("At step 30, 1 batch norm")
    assert set(beside.table["run"]) == {"with"}


def test_what_is_not_finite_is_said(ask):
    assert answer(ask(a=(math.nan, math.nan))) == "The error is not finite in any of 1 batch norms at step 30."
    words = answer(ask(a=(0.5, 1.0), b=(math.inf, math.nan)))
    assert "at most 1 LSB (a)" in words
    assert words.endswith("; 2 of 4 errors are not finite.")


def test_without_the_probe_it_is_not_measured(empty_run):
    question = how_exact_is_batch_norm_in_integers({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe quantization_error reads")
    assert not question.answers
