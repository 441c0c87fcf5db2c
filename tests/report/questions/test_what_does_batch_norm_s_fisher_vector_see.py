from __future__ import annotations

import math

import pytest

from normlens.report.questions.what_does_batch_norm_s_fisher_vector_see import what_does_batch_norm_s_fisher_vector_see
from normlens.run.reading import Measurement, Reading


@pytest.fixture
def ask(write_measurements):
    def ask(**layers):
        """Each layer of eight channels: shares multimodal and mixed, energy, residual or None, diagonal's error."""
        readings = []
        for layer, (multimodal, mixed, energy, residual, wrong) in layers.items():
            values = {
                "multimodal": multimodal, "mixed": mixed, "channels": 8.0, "unknown": 0.0, "fim_rel_err_mean": wrong,
            }  # fmt: skip
            values |= {} if residual is None else {"bn_residual": residual}
            readings += [Reading(name, value, layer=layer, n=16) for name, value in values.items()]
            readings.append(Reading("sigma_energy_mean", energy, layer=layer, error=0.02, n=64))
        last = tuple(readings) or (Reading("layers", 0.0),)
        early = tuple(Reading(name, 1.0, layer="a", n=16) for name in ("multimodal", "mixed", "channels"))
        return write_measurements(
            [Measurement(30, "fisher_vector", readings=last)]
            if not readings
            else [Measurement(0, "fisher_vector", readings=early), Measurement(30, "fisher_vector", readings=last)]
        )

    return ask


def answer(run):
    return what_does_batch_norm_s_fisher_vector_see({"run": run}).answers["run"]


def test_the_answer_counts_modes_and_names_the_energy_furthest_from_a_gaussian_s(ask):
    run = ask(a=(0.25, 0.5, 2.5, 2e-15, 0.4), b=(0.125, 0.125, 0.3, 1e-15, 0.2))
    assert answer(run) == (
        "At step 30, 3 of 16 channels show several modes, and for 5 one Gaussian is not enough; the scale block, which "
        "batch norm leaves out, has energy 0.3 ± 0.02 in b, the furthest from a Gaussian's 1; batch norm's output is "
        "the mean block to within 2e−15; the diagonal Fisher information of the mixtures is off by 30 %."
    )


def test_what_was_not_measured_is_left_out(ask):
    words = answer(ask(a=(0.0, 0.0, 1.2, None, math.nan)))
    assert words == (
        "At step 30, 0 of 8 channels show several modes, and for 0 one Gaussian is not enough; the scale block, which "
        "batch norm leaves out, has energy 1.2 ± 0.02 in a, where a Gaussian has 1."
    )


def test_what_is_not_finite_is_said(ask):
    words = answer(ask(a=(math.nan, math.nan, math.nan, math.nan, math.nan)))
    assert words == "At step 30, the distributions are not finite in any of 1 layers."


def test_a_model_with_nothing_to_measure_is_said_to_have_nothing(ask):
    nothing = (
        "The model has neither normalizations nor nonlinearities that are modules, so there is nothing to measure."
    )
    alone = what_does_batch_norm_s_fisher_vector_see({"run": ask()})
    assert alone.answers == {"run": nothing}
    assert not alone.figures
    beside = what_does_batch_norm_s_fisher_vector_see({"none": ask(), "with": ask(a=(0.0, 0.0, 1.2, None, 0.1))})
    assert beside.answers["none"] == nothing
    assert beside.answers["with"].startswith("At step 30, 0 of 8")
    assert set(beside.table["run"]) == {"with"}


def test_without_the_probe_it_is_not_measured(empty_run):
    question = what_does_batch_norm_s_fisher_vector_see({"run": empty_run})
    assert question.absence.startswith("Not measured: no run holds what the probe fisher_vector reads")
    assert not question.answers
